"""Templates: what a page's values look like. All text is escaped twice: control characters, then HTML."""

from __future__ import annotations

import hashlib
import time
from datetime import datetime, timezone, tzinfo
from functools import cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from celery_neli.periodic.text import human
from celery_neli.printable import printable
from celery_neli.ui import views
from celery_neli.ui.drawing import CLASSES
from celery_neli.ui.run_index import KINDS, kind_of

FILES: Final = Path(__file__).parent
LONGEST: Final = 4_100  # characters of one value
_UNITS: Final = (("d", 86_400.0), ("h", 3_600.0), ("min", 60.0))


def render(template: str, values: dict[str, Any], zone: tzinfo) -> str:
    """Return the page."""
    return _environment().get_template(template).render(values, tz=zone)


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(FILES / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=_finalize,
    )  # fmt: skip
    made.filters.update(ago=ago, duration=duration, moment=moment, clock=clock)
    made.globals.update(query_of=views.query_of, name_fields=views.name_fields, human=human, kind_of=kind_of)
    made.globals.update(classes=CLASSES, kinds=KINDS, version=_version())
    return made


def _finalize(value: Any) -> Any:
    return value if isinstance(value, (Markup, int, float)) else printable(str(value), LONGEST)


def _version() -> str:
    """Return a text that changes with the files that browsers keep."""
    files = sorted((FILES / "static").iterdir())
    return hashlib.sha256(b"".join(each.read_bytes() for each in files)).hexdigest()[:12]


def moment(seconds: float | None, zone: Any) -> Markup:
    """Return a time as an element, in this zone."""
    return _element(seconds, zone, "%Y-%m-%d %H:%M:%S")


def clock(seconds: float | None, zone: Any) -> Markup:
    """Return the time of day alone if it is of today, as an element."""
    if seconds is not None and abs(seconds - time.time()) < 72_000:
        return _element(seconds, zone, "%H:%M:%S")
    return _element(seconds, zone, "%b %d %H:%M")


def ago(seconds: float | None, now: float) -> str:
    """Return how long ago it was, or how far ahead it is."""
    if seconds is None:
        return "–"
    passed = now - seconds
    return f"{duration(passed)} ago" if passed >= 0 else f"in {duration(-passed)}"


def duration(seconds: float | None) -> str:
    """Return a number of seconds in a unit that fits."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    unit, size = next((each for each in _UNITS if seconds >= 2 * each[1]), ("s", 1.0))
    number = seconds / size
    return f"{number:.1f} {unit}" if number < 10 and unit == "s" else f"{number:.0f} {unit}"


def _element(seconds: float | None, zone: Any, form: str) -> Markup:
    if seconds is None:
        return Markup("–")
    try:
        found = datetime.fromtimestamp(seconds, zone)
        exact = datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):  # a record's time may be anything
        return Markup("{}").format(f"? ({seconds:g})")
    return Markup('<time datetime="{0}" title="{0}">{1}</time>').format(exact, found.strftime(form))
