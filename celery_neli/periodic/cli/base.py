"""What the commands of `celery neli schedule` share: how one is made, and how it prints."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import update_wrapper
from typing import Any

import click
from celery.bin.base import CeleryCommand

from celery_neli.exceptions import NeliError
from celery_neli.printable import failure, printable, say

WIDEST = 400  # the most characters of a cell
#: The key, in click's `meta`, of a function of an app and a name: why no beat runs an entry of this name, if so.
#: `celery neli` sets it, because only the command line knows how to ask who leads.
UNLED = "celery_neli.unled"
BY = click.option("--by", help="Who makes the change, for `show`; user@host by default.")
NOTE = click.option("--note", help="Why, for `show`.")
EXPECTED = click.option(
    "--expected",
    metavar="VERSION",
    help="Change nothing if the entry has another version than this, which `show` tells; '' if there must be none.",
)
NAME = click.argument("name")


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
    """Manage periodic tasks at runtime: what is due, who changed what, pauses, backfills, a schedule in a file."""


def command(
    *parameters: Callable[[Any], Any], name: str | None = None, cls: type[Command] = Command
) -> Callable[[Callable[..., None]], Any]:
    """Make a command of a function, whose first argument is the app with its tasks loaded."""

    def decorate(function: Callable[..., None]) -> Any:
        def run(obj: Any, /, **given: Any) -> None:
            obj.app.loader.import_default_modules()
            function(obj.app, **given)

        command = click.pass_obj(update_wrapper(run, function))
        for parameter in reversed(parameters):
            command = parameter(command)
        return schedule.command(name=name, cls=cls)(command)

    return decorate


def parsed(field: str, text: str, kind: type) -> Any:
    """Return what an option holds as JSON: a list or a dict, as `kind` says. Raises `ClickException`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise click.ClickException(f"--{field} {printable(repr(text))} is not valid JSON: {exc}") from None
    if not isinstance(value, kind):
        raise click.ClickException(
            f"--{field} {printable(repr(text))} must be a JSON {'array' if kind is list else 'object'}"
        )
    return value


def note(text: str | None) -> None:
    """Print a note on standard error, if there is one."""
    if text is not None:
        say(f"note: {text}", err=True)


def words(schedule: str) -> str:
    """Return the text of a schedule in words."""
    from celery_neli.periodic.text import human

    return human(schedule)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, its cells escaped and cut."""
    rows = [[printable(cell, WIDEST) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def utc(seconds: float | None) -> str:
    """Return Unix seconds as a time in UTC, "-" for None."""
    if seconds is None:
        return "-"
    try:
        return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M:%S}Z"
    except (TypeError, ValueError, OverflowError, OSError):  # another program may have written the state
        return f"? ({printable(seconds, 20)})"


def as_text(value: Any, depth: int = 2) -> str:
    """Return JSON; what cannot be JSON becomes its `repr`, as a whole below ``depth`` levels of lists and dicts."""
    try:
        return json.dumps(value, default=str)
    except (TypeError, ValueError, RecursionError):  # of beat_schedule: keys that are no strings, or a circle
        if isinstance(value, list) and depth:
            return f"[{', '.join(as_text(each, depth - 1) for each in value)}]"
        if isinstance(value, dict) and depth:
            fields = (f"{json.dumps(str(name))}: {as_text(each, depth - 1)}" for name, each in value.items())
            return f"{{{', '.join(fields)}}}"
        return json.dumps(printable(repr(value)))
