"""`celery neli schedule …`: the runtime schedule from the command line.

Every `celery` command imports this module, so what reads the schedule is loaded when one of its own commands runs.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from celery.bin.base import CeleryCommand

from celery_neli.exceptions import NeliError
from celery_neli.printable import failure, printable, say, say_json
from celery_neli.settings import MISFIRE_POLICIES

if TYPE_CHECKING:
    from celery_neli.periodic.api import Periodic
    from celery_neli.periodic.importers import Row, Source

#: The most characters of a cell.
WIDEST = 400
#: The key, in click's `meta`, of a function of an app and a name: why no beat runs an entry of this name, if so.
#: `celery neli` sets it, because only the command line knows how to ask who leads.
UNLED = "celery_neli.unled"
_BY = click.option("--by", help="Who makes the change, for `show`; user@host by default.")
_NAME = click.argument("name")


@click.group(name="schedule")
def schedule() -> None:
    """Manage periodic tasks at runtime: list, add, pause, remove, run, import."""


@schedule.command(name="list", cls=CeleryCommand)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
@click.pass_context
def list_(ctx: click.Context, as_json: bool) -> None:
    """List all entries: those of beat_schedule and those of the runtime schedule."""
    from celery_neli.periodic.text import human

    with _api(ctx) as (app, periodic):
        found, not_run = periodic.list(app), periodic.ScheduleEditor(app).not_run
    if as_json:
        say_json(_json([each.as_dict() for each in found]))
        return
    rows = [
        (each.name, human(each.schedule or "?"), _when(each.next), _when(each.last), str(each.runs), _state(each))
        for each in found
    ]
    _table(("NAME", "SCHEDULE", "NEXT", "LAST", "RUNS", "STATE"), rows)
    _note(not_run)


@schedule.command(cls=CeleryCommand)
@_NAME
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def show(ctx: click.Context, name: str, as_json: bool) -> None:
    """Show one entry, and who changed what and when."""
    from celery_neli.periodic.text import human

    with _api(ctx) as (app, periodic):
        found = periodic.get(app, name)
        if found is None:
            raise periodic.ScheduleEditor(app).unknown(name)
    if as_json:
        say_json(_json(found.as_dict()))
        return
    text = found.schedule or "?"
    rows = {
        "name": found.name,
        "task": found.task or "?",
        "schedule": text if human(text) == text else f"{text} ({human(text)})",
        **{field: _json(getattr(found, field)) for field in ("args", "kwargs", "options")},
        "state": _state(found),
        "next": _when(found.next),
        "last": _when(found.last),
        "runs": str(found.runs),
    }
    for field, value in rows.items():
        say(f"{field:9} {value}")
    for change in reversed(found.changes):
        say(f"{_when(change.at)}  {printable(change.by)}  {printable(change.what)}")


@schedule.command(cls=CeleryCommand)
@click.argument("name")
@click.argument("task")
@click.argument("when", metavar="SCHEDULE")
@click.option("--args", default="[]", help="Arguments, as a JSON array.")
@click.option("--kwargs", default="{}", help="Keyword arguments, as a JSON object.")
@click.option("--options", default="{}", help="Options of apply_async, as a JSON object.")
@click.option("--queue", help="The queue, the same as in --options.")
@click.option("--misfire", type=click.Choice(MISFIRE_POLICIES), help="What happens to missed slots.")
@click.option(
    "--overlap", type=click.Choice(("allow", "skip")), help="Whether a slot runs while the last task is unfinished."
)
@_BY
@click.pass_context
def add(ctx: click.Context, /, name: str, task: str, when: str, by: str | None, **given: Any) -> None:
    """Add an entry, or replace the one with this NAME.

    SCHEDULE is a crontab ('*/5 * * * *'), an interval (30s, 5m, 'every 2 hours', PT30S, P1DT2H), a solar event
    (solar:sunset,-37.81,144.96) or a time (at:2026-12-01T10:00:00Z).
    """
    options = _parsed("options", given["options"], dict)
    chosen = {"queue": given["queue"], "neli_misfire": given["misfire"], "neli_overlap": given["overlap"]}
    options.update((key, value) for key, value in chosen.items() if value is not None)
    args, kwargs = _parsed("args", given["args"], list), _parsed("kwargs", given["kwargs"], dict)
    with _api(ctx) as (app, periodic):
        found = periodic.put(app, name, task, when, args=args, kwargs=kwargs, options=options, by=by)
        _say(found)
        _note_doubts(ctx, app, found)


def _change(function: Callable[..., None]) -> click.Command:
    """Make a command of a function that changes or runs one entry."""
    return schedule.command(cls=CeleryCommand)(_NAME(_BY(click.pass_context(function))))


@_change
def pause(ctx: click.Context, name: str, by: str | None) -> None:
    """Let the slots of an entry pass until you resume it. This works for entries of beat_schedule, too."""
    with _api(ctx) as (app, periodic):
        _say(periodic.pause(app, name, by=by))


@_change
def resume(ctx: click.Context, name: str, by: str | None) -> None:
    """End the pause of an entry. Slots that passed during the pause do not run."""
    with _api(ctx) as (app, periodic):
        found = periodic.resume(app, name, by=by)
        _say(found)
        _note_doubts(ctx, app, found)


@_change
def remove(ctx: click.Context, name: str, by: str | None) -> None:
    """Delete a runtime entry and its state."""
    with _api(ctx) as (app, periodic):
        periodic.remove(app, name, by=by)
    say(f"{printable(name)}: removed")


@_change
def run(ctx: click.Context, name: str, by: str | None) -> None:
    """Send the task of an entry at once, from this process. Its schedule stays as it is."""
    with _api(ctx) as (app, periodic):
        result = periodic.run_now(app, name, by=by)
    say(f"{printable(name)}: sent as {getattr(result, 'id', '?')}")


@schedule.command(name="import", cls=CeleryCommand)
@click.argument("source", type=click.Choice(("redbeat", "django", "file")))
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Read everything and show what would be done; write nothing.")
@click.option(
    "--trust",
    multiple=True,
    metavar="CLASS",
    help="For a file: import this class and run its code if an entry holds one (shop.schedules.Tides). Repeatable.",
)
@click.option("--replace", is_flag=True, help="Replace entries that are already in the runtime schedule.")
@_BY
@click.pass_context
def import_(
    ctx: click.Context,
    source: str,
    path: Path | None,
    dry_run: bool,
    trust: tuple[str, ...],
    replace: bool,
    by: str | None,
) -> None:
    """Import the schedule of RedBeat, of django-celery-beat, or of a file of celery beat (PATH, by default
    celerybeat-schedule), with the last run and the count of each entry. The exit status is 1 if any entry was left out.

    The file holds pickles, which could run any code. The command runs none of it, with or without --dry-run, except for
    classes that you --trust: it leaves out, and names, an entry that holds a class other than Celery's own and plain
    values.
    """
    from celery_neli.periodic.importers import carry_over, django, redbeat, shelf

    if source != "file" and (path is not None or trust):
        raise click.UsageError(f"{source} is not a file: leave out PATH and --trust")
    with _api(ctx) as (app, periodic):
        if source == "file":
            found = shelf.read(app, path or Path(app.conf.beat_schedule_filename), trust=trust)
        else:
            found = {"redbeat": redbeat, "django": django}[source].read(app)
        editor = periodic.ScheduleEditor(app, by=by)
        rows = carry_over(found, editor, dry_run=dry_run, replacing=replace)
        _note(editor.not_run)  # an import may come before the change of the setting
    ctx.exit(_report(found, rows, dry_run=dry_run))


def _report(source: Source, rows: Sequence[Row], *, dry_run: bool) -> int:
    from celery_neli.periodic.text import human

    shown = [
        (each.name, each.action, human(each.schedule or "-"), _when(each.last), str(each.runs), "; ".join(each.notes))
        for each in rows
    ]
    _table(("NAME", "ACTION", "SCHEDULE", "LAST", "RUNS", "NOTE"), shown)
    counts = Counter(each.action for each in rows)
    summary = ", ".join(f"{count} {action}" for action, count in counts.items()) or "nothing found"
    say(f"{source.what}: {summary}" + (" (dry run: nothing was written)" if dry_run else ""))
    if source.warning:
        say(f"note: {source.warning}", err=True)
    return 1 if counts["left out"] else 0


@contextlib.contextmanager
def _api(ctx: click.Context) -> Iterator[tuple[Any, Any]]:
    """Yield the app, with its tasks loaded, and the runtime API; end the command with one line if either raises."""
    from celery.beat import SchedulingError

    from celery_neli.periodic import api as periodic

    app = ctx.obj.app
    app.loader.import_default_modules()
    try:
        yield app, periodic
    except (NeliError, SchedulingError) as exc:
        raise failure(exc) from None


def _parsed(field: str, text: str, kind: type) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise click.ClickException(f"--{field} {printable(repr(text))} is not valid JSON: {exc}") from None
    if not isinstance(value, kind):
        raise click.ClickException(
            f"--{field} {printable(repr(text))} must be a JSON {'array' if kind is list else 'object'}"
        )
    return value


def _say(found: Periodic) -> None:
    say(f"{printable(found.name)}: {_state(found)}, next {_when(found.next)}")


def _note(text: str | None) -> None:
    if text is not None:
        say(f"note: {text}", err=True)


def _note_doubts(ctx: click.Context, app: Any, found: Periodic) -> None:
    """Note what the entry's next run still lacks: a task that this app knows, a beat that leads."""
    if found.task not in app.tasks:
        _note(f"this app does not know the task {found.task!r}; the workers must know it")
    unled: Callable[[Any, str], str | None] | None = ctx.meta.get(UNLED)
    if not found.paused and unled is not None:
        _note(unled(app, found.name))


def _state(found: Periodic) -> str:
    unrun = found.source == "runtime" and found.next is None
    if found.problem and (found.task is None or (unrun and not found.paused)):
        return f"{found.source}, {found.problem}"
    over = unrun and found.problem is None
    words = f"{'paused' if found.paused else 'finished' if over else 'active'}, {found.source}"
    return words + (f" ({found.problem})" if found.problem else "")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    rows = [[printable(cell, WIDEST) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _when(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    try:
        return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M:%S}Z"
    except (TypeError, ValueError, OverflowError, OSError):  # another program may have written the state
        return f"? ({printable(seconds, 20)})"


def _json(value: Any, depth: int = 2) -> str:
    """Return JSON; what cannot be JSON becomes its `repr`, as a whole below ``depth`` levels of lists and dicts."""
    try:
        return json.dumps(value, default=str)
    except (TypeError, ValueError, RecursionError):  # of beat_schedule: keys that are no strings, or a circle
        if isinstance(value, list) and depth:
            return f"[{', '.join(_json(each, depth - 1) for each in value)}]"
        if isinstance(value, dict) and depth:
            fields = (f"{json.dumps(str(name))}: {_json(each, depth - 1)}" for name, each in value.items())
            return f"{{{', '.join(fields)}}}"
        return json.dumps(printable(repr(value)))
