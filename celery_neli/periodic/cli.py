"""`celery neli schedule …`: the runtime schedule from the command line.

Every `celery` command imports this module, so what reads the schedule is loaded when one of its own commands runs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from functools import update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from celery.bin.base import CeleryCommand

from celery_neli import periodic
from celery_neli.exceptions import NeliError
from celery_neli.printable import failure, printable, say, say_json
from celery_neli.settings import MISFIRE_POLICIES

if TYPE_CHECKING:
    from celery_neli.history.runs import Run

WIDEST = 400  # the most characters of a cell
#: The key, in click's `meta`, of a function of an app and a name: why no beat runs an entry of this name, if so.
#: `celery neli` sets it, because only the command line knows how to ask who leads.
UNLED = "celery_neli.unled"
_BY = click.option("--by", help="Who makes the change, for `show`; user@host by default.")
_NAME = click.argument("name")


class Command(CeleryCommand):
    """A command that ends with one line if it raises an error of ours, or cannot send a message."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run it."""
        from celery.beat import SchedulingError

        try:
            return super().invoke(ctx)
        except (NeliError, SchedulingError) as exc:
            raise failure(exc) from None


@click.group(name="schedule")
def schedule() -> None:
    """Manage periodic tasks at runtime: list, add, pause, remove, run, import."""


def _command(*parameters: Callable[[Any], Any], name: str | None = None) -> Callable[[Callable[..., None]], Any]:
    """Make a command of a function, whose first argument is the app with its tasks loaded."""

    def decorate(function: Callable[..., None]) -> Any:
        def run(obj: Any, /, **given: Any) -> None:
            obj.app.loader.import_default_modules()
            function(obj.app, **given)

        command = click.pass_obj(update_wrapper(run, function))
        for parameter in reversed(parameters):
            command = parameter(command)
        return schedule.command(name=name, cls=Command)(command)

    return decorate


@_command(click.option("--json", "as_json", is_flag=True, help="Print one JSON array."), name="list")
def list_(app: Any, as_json: bool) -> None:
    """List all entries: those of beat_schedule and those of the runtime schedule."""
    from celery_neli.periodic.editor import ScheduleEditor

    found, not_run = periodic.list(app), ScheduleEditor(app).not_run
    if as_json:
        say_json(_json([each.as_dict() for each in found]))
        return
    rows = [
        (each.name, _words(each.schedule or "?"), _when(each.next), _when(each.last), str(each.runs), _state(each))
        for each in found
    ]
    _table(("NAME", "SCHEDULE", "NEXT", "LAST", "RUNS", "STATE"), rows)
    _note(not_run)


@_command(_NAME, click.option("--json", "as_json", is_flag=True, help="Print one JSON object."))
def show(app: Any, name: str, as_json: bool) -> None:
    """Show one entry, and who changed what and when."""
    from celery_neli.periodic.editor import ScheduleEditor

    found = periodic.get(app, name)
    if found is None:
        raise ScheduleEditor(app).unknown(name)
    if as_json:
        say_json(_json(found.as_dict()))
        return
    text = found.schedule or "?"
    rows = {
        "name": found.name,
        "task": found.task or "?",
        "schedule": text if _words(text) == text else f"{text} ({_words(text)})",
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


@_command(
    _NAME,
    click.argument("task"),
    click.argument("when", metavar="SCHEDULE"),
    click.option("--args", default="[]", help="Arguments, as a JSON array."),
    click.option("--kwargs", default="{}", help="Keyword arguments, as a JSON object."),
    click.option("--options", default="{}", help="Options of apply_async, as a JSON object."),
    click.option("--queue", help="The queue, the same as in --options."),
    click.option("--misfire", type=click.Choice(MISFIRE_POLICIES), help="What happens to missed slots."),
    click.option(
        "--overlap", type=click.Choice(("allow", "skip")), help="Whether a slot runs while the last task is unfinished."
    ),
    _BY,
)
def add(app: Any, /, name: str, task: str, when: str, by: str | None, **given: Any) -> None:
    """Add an entry, or replace the one with this NAME.

    SCHEDULE is a crontab ('*/5 * * * *'), a line of cron in a time zone ('CRON_TZ=Europe/Berlin 30 7 * * mon-fri'), an
    interval (30s, 5m, 'every 2 hours', PT30S, P1DT2H), a solar event (solar:sunset,-37.81,144.96) or a time
    (at:2026-12-01T10:00:00Z).
    """
    options = _parsed("options", given["options"], dict)
    chosen = {"queue": given["queue"], "neli_misfire": given["misfire"], "neli_overlap": given["overlap"]}
    options.update((key, value) for key, value in chosen.items() if value is not None)
    args, kwargs = _parsed("args", given["args"], list), _parsed("kwargs", given["kwargs"], dict)
    _say(app, periodic.put(app, name, task, when, args=args, kwargs=kwargs, options=options, by=by))


@_command(_NAME, _BY)
def pause(app: Any, name: str, by: str | None) -> None:
    """Let the slots of an entry pass until you resume it. This works for entries of beat_schedule, too."""
    _say(app, periodic.pause(app, name, by=by))


@_command(_NAME, _BY)
def resume(app: Any, name: str, by: str | None) -> None:
    """End the pause of an entry. Slots that passed during the pause do not run."""
    _say(app, periodic.resume(app, name, by=by))


@_command(_NAME, _BY)
def remove(app: Any, name: str, by: str | None) -> None:
    """Delete a runtime entry and its state."""
    periodic.remove(app, name, by=by)
    say(f"{printable(name)}: removed")


@_command(_NAME, _BY)
def run(app: Any, name: str, by: str | None) -> None:
    """Send the task of an entry at once, from this process. Its schedule stays as it is."""
    result = periodic.run_now(app, name, by=by)
    say(f"{printable(name)}: sent as {getattr(result, 'id', '?')}")


@_command(
    click.argument("name", required=False),
    click.option("--failed", is_flag=True, help="Show only runs that came to no good end."),
    click.option("--limit", type=click.IntRange(1, 100_000), default=20, show_default=True, help="How many runs."),
    click.option("--since", metavar="WHEN", help="Only since then: 2h, 30m, 7d ago, or 2026-12-01T07:00Z."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON array."),
)
def runs(app: Any, name: str | None, failed: bool, limit: int, since: str | None, as_json: bool) -> None:
    """Show what became of the latest slots, of the entry NAME or of all, newest first: the run history.

    OUTCOME is what the beat did (sent, failed, refused, in_doubt, skipped), STATE what the task did last, if its worker
    has celery-neli installed.
    """
    from celery_neli.periodic import run_history

    after = None if since is None else run_history.since_of(since)
    only = (lambda run: run.failed) if failed else None
    found = run_history.runs(app, name, limit=limit, since=after, only=only)
    if as_json:
        say_json(_json([each.as_dict() for each in found]))
        return
    if not found:
        say("no runs recorded" + (f" of {printable(name)}" if name is not None else ""))
        return
    rows = [_cells(each, with_entry=name is None) for each in found]
    _table([*rows[0]], [[*row.values()] for row in rows])


def _cells(run: Run, *, with_entry: bool) -> dict[str, str]:
    """Return one line of the table of runs, by the heads of its columns."""
    return {
        "SLOT": "by hand" if run.slot is None and run.outcome is None else _when(run.slot),
        **({"ENTRY": run.entry} if with_entry else {}),
        "OUTCOME": run.outcome or "-",
        "LATE": _span(run.late),
        "STATE": run.state or "-",
        "RUNTIME": _span(run.runtime),
        "WORKER": run.worker or "-",
        "TERM": "-" if run.term is None else str(run.term),
        "NOTE": "; ".join(_notes(run)),
    }


def _notes(run: Run) -> Iterator[str]:
    if run.policy and run.policy != run.in_doubt:
        yield f"policy {run.policy}"
    if run.in_doubt:
        yield f"in doubt: {run.in_doubt}"
    if run.count > 1:
        yield f"{run.count} slots since {_when(run.first)}"
    if run.attempts > 1:
        yield f"{run.attempts} attempts to send"
    if run.retries:
        yield f"after {run.retries} {'retry' if run.retries == 1 else 'retries'}"
    if run.error:
        yield run.error


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.2f}s" if abs(seconds) < 60 else str(timedelta(seconds=round(seconds)))


@_command(
    click.argument("what", metavar="NAME|TEXT"),
    click.option("-n", "count", type=click.IntRange(1, 10_000), default=10, show_default=True, help="How many slots."),
    click.option("--tz", help="The time zone to show them in; by default that of the schedule."),
    click.option("--entry", is_flag=True, help="NAME is an entry, even if it reads as a schedule."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON array."),
    name="next",
)
def next_(app: Any, what: str, count: int, tz: str | None, entry: bool, as_json: bool) -> None:
    """Show the next slots of an entry, or of a schedule such as 'CRON_TZ=Europe/Berlin 30 7 * * mon-fri', and what
    becomes of each: by the misfire policy, a pause, a change of the clock.
    """
    from celery_neli.periodic.preview import preview

    found = preview(app, what, count, tz=tz, named=entry)
    if as_json:
        say_json(_json([each.as_dict() for each in found.runs]))
        return
    say(f"{printable(found.what, WIDEST)}, shown in {found.zone}")
    if not found.runs:
        say("no slot will come")
        return
    rows = [
        (
            f"{each.slot:%a} {each.slot.isoformat(' ', 'seconds')}",
            _when(each.slot.timestamp()),
            "yes" if each.runs else "no",
            "; ".join(each.notes),
        )
        for each in found.runs
    ]
    _table(("SLOT", "UTC", "RUNS", "NOTE"), rows)


@_command(
    click.argument("source", type=click.Choice(("redbeat", "django", "file"))),
    click.argument("path", required=False, type=click.Path(path_type=Path)),
    click.option("--dry-run", is_flag=True, help="Read everything and show what would be done; write nothing."),
    click.option(
        "--trust",
        multiple=True,
        metavar="CLASS",
        help="For a file: import this class and run its code if an entry holds one (shop.schedules.Tides). Repeatable.",
    ),
    click.option("--replace", is_flag=True, help="Replace entries that are already in the runtime schedule."),
    _BY,
    name="import",
)
def import_(
    app: Any, source: str, path: Path | None, dry_run: bool, trust: tuple[str, ...], replace: bool, by: str | None
) -> None:
    """Import the schedule of RedBeat, of django-celery-beat, or of a file of celery beat (PATH, by default
    celerybeat-schedule), with the last run and the count of each entry. The exit status is 1 if any entry was left out.

    The file holds pickles, which could run any code. The command runs none of it, with or without --dry-run, except for
    classes that you --trust: it leaves out, and names, an entry that holds a class other than Celery's own and plain
    values.
    """
    from celery_neli.periodic.editor import ScheduleEditor
    from celery_neli.periodic.importers import carry_over, shelf, stores

    if source != "file" and (path is not None or trust):
        raise click.UsageError(f"{source} is not a file: leave out PATH and --trust")
    if source == "file":
        found = shelf.read(app, path or Path(app.conf.beat_schedule_filename), trust=trust)
    else:
        found = stores.read_redbeat(app) if source == "redbeat" else stores.read_django(app)
    editor = ScheduleEditor(app, by=by)
    rows = carry_over(found, editor, dry_run=dry_run, replacing=replace)
    _note(editor.not_run)  # an import may come before the change of the setting
    cells = [
        (each.name, each.action, _words(each.schedule or "-"), _when(each.last), str(each.runs), "; ".join(each.notes))
        for each in rows
    ]
    _table(("NAME", "ACTION", "SCHEDULE", "LAST", "RUNS", "NOTE"), cells)
    counts = Counter(each.action for each in rows)
    summary = ", ".join(f"{count} {action}" for action, count in counts.items()) or "nothing found"
    say(f"{found.what}: {summary}" + (" (dry run: nothing was written)" if dry_run else ""))
    _note(found.warning)
    if counts["left out"]:
        raise click.exceptions.Exit(1)


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


def _say(app: Any, found: periodic.Periodic) -> None:
    """Say what became of an entry, and what its next run still lacks: a task that this app knows, a beat that leads."""
    say(f"{printable(found.name)}: {_state(found)}, next {_when(found.next)}")
    if found.paused:
        return
    if found.task not in app.tasks:
        _note(f"this app does not know the task {found.task!r}; the workers must know it")
    unled: Callable[[Any, str], str | None] | None = click.get_current_context().meta.get(UNLED)
    if unled is not None:
        _note(unled(app, found.name))


def _note(text: str | None) -> None:
    if text is not None:
        say(f"note: {text}", err=True)


def _words(schedule: str) -> str:
    from celery_neli.periodic.text import human

    return human(schedule)


def _state(found: periodic.Periodic) -> str:
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
