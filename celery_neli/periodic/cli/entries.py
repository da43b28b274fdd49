"""`celery neli schedule`: list, show, add, pause, resume, remove and run entries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from celery_neli import periodic
from celery_neli.periodic.cli.base import (
    BY,
    EXPECTED,
    NAME,
    NOTE,
    UNLED,
    as_text,
    command,
    note,
    parsed,
    table,
    utc,
    words,
)
from celery_neli.printable import printable, say, say_json
from celery_neli.settings import MISFIRE_POLICIES, MOST_FAILURES, OVERLAP_POLICIES


@command(
    click.option("--prefix", default="", help="Only entries whose names begin with this."),
    click.option("--tag", help="Only entries with this tag."),
    click.option("--owner", help="Only entries of this owner."),
    click.option("--limit", type=click.IntRange(min=1), help="How many entries at most."),
    click.option("--after", metavar="NAME", help="Only entries whose names come after this one."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON array."),
    name="list",
)
def list_(app: Any, as_json: bool, **given: Any) -> None:
    """List entries by name: those of beat_schedule and those of the runtime schedule."""
    from celery_neli.periodic.editor import ScheduleEditor

    found, not_run = periodic.list(app, **given), ScheduleEditor(app).not_run
    if as_json:
        say_json(as_text([each.as_dict() for each in found]))
        return
    rows = [
        (each.name, _schedule_of(each), utc(each.next), utc(each.last), str(each.runs), state_of(each))
        for each in found
    ]
    table(("NAME", "SCHEDULE", "NEXT", "LAST", "RUNS", "STATE"), rows)
    note(not_run)


@command(NAME, click.option("--json", "as_json", is_flag=True, help="Print one JSON object."))
def show(app: Any, name: str, as_json: bool) -> None:
    """Show one entry, and who changed what, when and why."""
    from celery_neli.periodic.editor import ScheduleEditor

    found = periodic.get(app, name)
    if found is None:
        raise ScheduleEditor(app).unknown(name)
    if as_json:
        say_json(as_text(found.as_dict()))
        return
    rows = {
        "name": found.name,
        "task": found.task or "?",
        "schedule": _text_of(found),
        **{field: as_text(getattr(found, field)) for field in ("args", "kwargs", "options")},
        "state": state_of(found),
        "next": utc(found.next),
        "last": utc(found.last),
        "runs": str(found.runs),
        **({"owner": printable(found.owner)} if found.owner else {}),
        **({"version": printable(found.version)} if found.version else {}),
    }
    for field, value in rows.items():
        say(f"{field:9} {value}")
    for change in reversed(found.changes):
        why = f": {printable(change.note)}" if change.note else ""
        say(f"{utc(change.at)}  {printable(change.by)}  {printable(change.what)}{why}")


@command(
    NAME,
    click.argument("task"),
    click.argument("when", metavar="SCHEDULE"),
    click.option("--args", default="[]", help="Arguments, as a JSON array."),
    click.option("--kwargs", default="{}", help="Keyword arguments, as a JSON object."),
    click.option("--options", default="{}", help="Options of apply_async and of celery-neli, as a JSON object."),
    click.option("--queue", help="The queue, the same as in --options."),
    click.option("--misfire", type=click.Choice(MISFIRE_POLICIES), help="What happens to missed slots."),
    click.option("--tz", help="The time zone of a crontab, or of a line of cron, such as Europe/Berlin."),
    click.option("--start", metavar="TIME", help="No slot before it: 2026-12-01T10:00, in the zone of the schedule."),
    click.option("--end", metavar="TIME", help="No slot after it, in the same form."),
    click.option("--max-runs", type=int, metavar="N", help="The entry is finished after so many runs."),
    click.option("--calendar", help="Days without a slot: 'holidays:DE-BY', or 'only …' for days with one."),
    click.option("--jitter", type=float, metavar="SECONDS", help="Send it up to so many seconds later."),
    click.option("--tag", "tags", multiple=True, help="A tag of the entry; may be given several times."),
    click.option(
        "--overlap",
        type=click.Choice(OVERLAP_POLICIES),
        help="What becomes of a slot that is due while the last task is unfinished.",
    ),
    click.option(
        "--pause-on-failure", type=click.IntRange(1, MOST_FAILURES), help="Pause after so many failed runs in a row."
    ),
    click.option("--owner", help="Whose entry it is, for `list --owner` and files."),
    BY,
    NOTE,
    EXPECTED,
)
def add(app: Any, /, name: str, task: str, when: str, **given: Any) -> None:
    """Add an entry, or replace the one with this NAME.

    SCHEDULE is a crontab ('*/5 * * * *'), a line of cron in a time zone ('CRON_TZ=Europe/Berlin 30 7 * * mon-fri'), an
    interval (30s, 5m, 'every 2 hours', PT30S, P1DT2H), a solar event (solar:sunset,-37.81,144.96) or a time
    (at:2026-12-01T10:00:00Z).
    """
    options = parsed("options", given["options"], dict)
    chosen = {
        "queue": given["queue"],
        "neli_pause_on_failure": given["pause_on_failure"],
        "neli_timezone": given["tz"],
        "neli_tags": [*given["tags"]] or None,
        **{f"neli_{each}": given[each] for each in _OWN},
    }
    options.update((key, value) for key, value in chosen.items() if value is not None)
    args, kwargs = parsed("args", given["args"], list), parsed("kwargs", given["kwargs"], dict)
    change = {name: given[name] for name in ("owner", "by", "note", "expected")}
    say_entry(app, periodic.put(app, name, task, when, args=args, kwargs=kwargs, options=options, **change))


#: Options of the same name, but for `neli_` before it.
_OWN = ("misfire", "overlap", "start", "end", "max_runs", "calendar", "jitter")


@command(NAME, BY, NOTE, EXPECTED)
def remove(app: Any, name: str, **given: Any) -> None:
    """Delete a runtime entry and its state."""
    periodic.remove(app, name, **given)
    say(f"{printable(name)}: removed")


@command(NAME, BY, NOTE)
def run(app: Any, name: str, **given: Any) -> None:
    """Send the task of an entry at once, from this process. Its schedule stays as it is."""
    result = periodic.run_now(app, name, **given)
    say(f"{printable(name)}: sent as {getattr(result, 'id', '?')}")


def say_entry(app: Any, found: periodic.Periodic) -> None:
    """Say what became of an entry, and what its next run still lacks: a task that this app knows, a beat that leads."""
    say(f"{printable(found.name)}: {state_of(found)}, next {utc(found.next)}")
    if found.paused:
        return
    if found.task not in app.tasks:
        note(f"this app does not know the task {found.task!r}; the workers must know it")
    unled: Callable[[Any, str], str | None] | None = click.get_current_context().meta.get(UNLED)
    if unled is not None:
        note(unled(app, found.name))


def _schedule_of(found: periodic.Periodic) -> str:
    """Return the schedule of an entry in words, with the time zone that its options give it."""
    zone = found.options.get("neli_timezone")
    return words(found.schedule or "?") + (f" ({zone})" if zone is not None else "")


def _text_of(found: periodic.Periodic) -> str:
    """Return the schedule of an entry as one may write it, and in words if these say more."""
    text, in_words = found.schedule or "?", _schedule_of(found)
    plain = text.removeprefix("cron:")
    if in_words.startswith(plain):
        return text + in_words.removeprefix(plain)  # its time zone, if an option gives it one
    return text if text.startswith("CRON_TZ=") else f"{text} ({in_words})"


def state_of(found: periodic.Periodic) -> str:
    """Return the state of an entry in a few words."""
    unrun = found.source == "runtime" and found.next is None
    if found.problem and (found.task is None or (unrun and not found.paused)):
        return f"{found.source}, {found.problem}"
    over = found.finished or (unrun and found.problem is None)
    paused = _paused(found)
    words = f"{paused if found.paused else 'finished' if over else 'active'}, {found.source}"
    return words + (f" ({found.problem})" if found.problem else "")


def _paused(found: periodic.Periodic) -> str:
    until = f" until {utc(found.until)}" if found.until is not None else ""
    return f"paused{until}" + (f" by the pause of {found.paused_by}" if found.paused_by else "")
