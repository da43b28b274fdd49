"""The options of an entry that have fields of their own in the form, and how a field's text becomes a value.

The names come from the tables that check entries: an option that is new there has a field here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final

from celery_neli.schedule.policies import OWN_OPTIONS
from celery_neli.settings import MISFIRE_POLICIES, OVERLAP_POLICIES

TEXT, NUMBER, WORDS, ANY = "text", "number", "words", "any"
WHEN, POLICY, MESSAGE, LABELS = "When", "Policies", "Message", "Labels"


@dataclass(frozen=True, slots=True)
class Option:
    """One field: what its text is (`TEXT`, `NUMBER`, `WORDS` that commas part, or `ANY`: JSON, else text), where it
    stands, what it is for, and the values that it may have.
    """

    kind: str = ANY
    section: str = POLICY
    help: str = ""
    choices: tuple[str, ...] = ()


_KNOWN: Final[Mapping[str, Option]] = {
    "neli_timezone": Option(TEXT, WHEN, "The time zone of a crontab, such as Europe/Berlin; else that of the app."),
    "neli_calendar": Option(TEXT, WHEN, "Days on which it does not run, or the only ones, such as holidays:DE-BY."),
    "neli_start": Option(TEXT, WHEN, "No slot before this time: 2026-12-01T08:00:00Z."),
    "neli_end": Option(TEXT, WHEN, "No slot after this time."),
    "neli_max_runs": Option(NUMBER, WHEN, "How often it runs at most."),
    "neli_jitter": Option(NUMBER, WHEN, "Seconds by which its slots are shifted at most, always by the same number."),
    "neli_misfire": Option(TEXT, POLICY, "What becomes of slots that were missed.", tuple(MISFIRE_POLICIES)),
    "neli_misfire_max": Option(NUMBER, POLICY, "Under fire_all: how many missed slots run at most."),
    "neli_misfire_grace": Option(NUMBER, POLICY, "Seconds that a slot may be late."),
    "neli_overlap": Option(TEXT, POLICY, "What becomes of a slot while the last run is unfinished.", OVERLAP_POLICIES),
    "neli_overlap_age": Option(NUMBER, POLICY, "Seconds for which an unfinished run counts."),
    "neli_expires": Option(NUMBER, POLICY, "Seconds after its slot from which on a task must not begin."),
    "neli_pause_on_failure": Option(NUMBER, POLICY, "It is paused after so many failed runs in a row."),
    "neli_overdue": Option(NUMBER, POLICY, "Seconds without a start after which an alarm is raised."),
    "neli_max_runtime": Option(NUMBER, POLICY, "Seconds of running after which an alarm is raised."),
    "queue": Option(TEXT, MESSAGE, "The queue of its messages."),
    "priority": Option(NUMBER, MESSAGE, "0 to 255, as the broker takes it."),
    "expires": Option(NUMBER, MESSAGE, "Seconds after its sending from which on a task must not begin, or a time."),
    "neli_tags": Option(WORDS, LABELS, "Words, with commas between them."),
}
#: All fields, in the order of the form.
OPTIONS: Final[Mapping[str, Option]] = {
    **{name: each for name, each in _KNOWN.items() if name in OWN_OPTIONS or not name.startswith("neli_")},
    **{name: Option() for name in sorted(OWN_OPTIONS - _KNOWN.keys())},
}


def shown_value(value: Any) -> str:
    """Return what the field of an option shows of its value."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, (list, tuple)) and all(type(each) is str and "," not in each for each in value):
        return ", ".join(value)
    return json.dumps(value, default=str)


def value_of(option: Option, text: str) -> Any:
    """Return the value that the text of a field means; the checks of an entry judge it."""
    text = text.strip()
    if option.kind == WORDS:
        return [word for each in text.split(",") if (word := each.strip())]
    if option.kind == TEXT:
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return text if option.kind == NUMBER and type(value) not in (int, float) else value
