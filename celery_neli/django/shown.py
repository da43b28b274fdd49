"""How entries, changes and runs are shown: plain text without control characters, which templates escape once more."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from celery import Celery
from django.contrib.admin.utils import quote
from django.urls import NoReverseMatch, reverse
from django.utils import timezone
from kombu.utils.json import dumps

from celery_neli import periodic
from celery_neli.django.entries import PAUSED, RUNTIME, state_of
from celery_neli.exceptions import NeliError
from celery_neli.periodic import Change, Periodic, Run
from celery_neli.periodic.text import human
from celery_neli.printable import printable, without_secrets

NEXT: Final = 5  # slots of a preview
LONGEST: Final = 4_000  # characters of one value
ONE_LINE: Final = 60  # characters of JSON that stand on one line


def address(site: str, what: str, name: str) -> str | None:
    """Return the path of a page of an entry; None for a name that no address can hold."""
    try:
        return reverse(f"{site}:celery_neli_entry_{what}", args=(quote(name),)) if name.strip(".") else None
    except (NoReverseMatch, UnicodeError):  # beat_schedule may have any name
        return None


def _can_be_sent(name: str) -> bool:
    """Return True for a name that a form can hold: one of beat_schedule may have half of a character."""
    return name == name.encode("utf-8", "ignore").decode()


def moment(seconds: Any) -> str:
    """Return Unix seconds as a time in Django's current time zone, "–" for None."""
    if seconds is None:
        return "–"
    try:
        return f"{datetime.fromtimestamp(seconds, zone()):%Y-%m-%d %H:%M:%S}"
    except (TypeError, ValueError, OverflowError, OSError):  # a record's time may be anything
        return f"? ({printable(seconds, 20)})"


def zone() -> Any:
    """Return the time zone of all times that are shown, apart from those of a preview."""
    return timezone.get_current_timezone()


def row(entry: Periodic, site: str) -> dict[str, Any]:
    """Return what the list and the page of an entry show of it."""
    state = state_of(entry)
    last = next((each for each in reversed(entry.changes) if each.what.startswith("paused")), None)
    paused = {
        "own": entry.paused,
        "many": printable(entry.paused_by or ""),
        "until": moment(entry.until) if entry.until is not None else "",
        "by": printable(last.by) if entry.paused and last is not None else "",
        "note": printable(last.note, LONGEST) if entry.paused and last is not None else "",
    }
    return {
        "name": printable(entry.name, LONGEST),
        "raw": entry.name if _can_be_sent(entry.name) else None,
        "address": address(site, "change", entry.name),
        "task": printable(entry.task or "?"),
        "schedule": printable(human(entry.schedule or "?"), LONGEST),
        "text": printable(entry.schedule or "?", LONGEST),
        "next": moment(entry.next),
        "last": moment(entry.last),
        "runs": entry.runs,
        "state": state,
        "paused": paused if state == PAUSED else None,
        "problem": printable(entry.problem, LONGEST) if entry.problem else "",
        "source": entry.source,
        "runtime": entry.source == RUNTIME,
        "owner": printable(entry.owner),
        "tags": [printable(each) for each in entry.tags],
    }


def details(entry: Periodic) -> list[tuple[str, str]]:
    """Return the fields of an entry that can only be looked at. What a name says is a secret is hidden."""
    text = entry.schedule or "?"
    words = human(text)
    shown = {
        "Task": entry.task or "?",
        "Schedule": text if words == text else f"{text} ({words})",
        "Arguments": as_json(without_secrets(entry.args)),
        "Keyword arguments": as_json(without_secrets(entry.kwargs)),
        "Options": as_json(without_secrets(entry.options)),
    }
    return [(name, printable(value, LONGEST)) for name, value in shown.items()]


def as_json(value: Any) -> str:
    """Return JSON that the form reads back as the same; of what cannot be JSON, its `repr`."""
    write: Any = dumps  # it comes without types
    try:
        return str(write(value, ensure_ascii=False, indent=None if len(str(value)) < ONE_LINE else 2))
    except Exception:  # noqa: BLE001 - of beat_schedule; any class may raise anything
        return printable(repr(value), LONGEST)


def change(made: Change) -> dict[str, str]:
    """Return a change as the history shows it."""
    return {
        "at": moment(made.at),
        "by": printable(made.by),
        "what": printable(made.what, LONGEST),
        "note": printable(made.note, LONGEST),
    }


def run(found: Run) -> dict[str, Any]:
    """Return a run as the history shows it."""
    outcome = found.outcome or "–"
    if found.policy:
        outcome += f" ({found.policy})"
    return {
        "slot": moment(found.when),
        "outcome": printable(outcome if found.count == 1 else f"{outcome} × {found.count}"),
        "state": printable(found.state or "–"),
        "started": moment(found.started),
        "runtime": "–" if found.runtime is None else f"{found.runtime:.3f} s",
        "worker": printable(found.worker or "–"),
        "error": printable(found.error, LONGEST),
        "failed": found.failed,
    }


def next_slots(app: Celery, what: Any) -> dict[str, Any]:
    """Return the next slots of an entry or of a schedule, or the reason why there are none to show."""
    try:
        found = periodic.next_runs(app, what, NEXT)
    except NeliError as exc:
        return {"error": printable(str(exc), LONGEST), "slots": []}
    slots = [
        {"slot": f"{each.slot:%a %Y-%m-%d %H:%M:%S %Z}", "runs": each.runs, "notes": printable("; ".join(each.notes))}
        for each in found
    ]
    return {"error": "" if slots else "It has no slot any more.", "slots": slots}
