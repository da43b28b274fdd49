"""`celery neli schedule pause`, `resume` and `pauses`: of one entry, or of many at once."""

from __future__ import annotations

from typing import Any

import click

from celery_neli import periodic
from celery_neli.exceptions import ConfigurationError
from celery_neli.periodic.cli.base import BY, EXPECTED, NOTE, as_text, command, note, table, utc
from celery_neli.periodic.cli.entries import say_entry
from celery_neli.printable import printable, say, say_json

_NAME = click.argument("name", required=False)
_ALL = click.option("--all", "all_", is_flag=True, help="All entries, also those that are put later.")
_TAG = click.option("--tag", help="The entries with this tag.")
_PREFIX = click.option("--prefix", help="The entries whose names begin with this.")
_UNTIL = click.option("--until", metavar="WHEN", help="End by itself: in 2h, 30m, 7d, or at 2026-12-01T07:00Z.")


@command(_NAME, _ALL, _TAG, _PREFIX, _UNTIL, BY, NOTE, EXPECTED)
def pause(app: Any, name: str | None, until: str | None, expected: str | None, **given: Any) -> None:
    """Let the slots of an entry, or of many, pass. This works for entries of beat_schedule, too."""
    from celery_neli.periodic.run_history import until_of_text

    end = None if until is None else until_of_text(until)
    where = _where(name, expected, given)
    if name is not None:
        say_entry(app, periodic.pause(app, name, until=end, expected=expected, **given))
        return
    say(f"paused: {printable(periodic.pause_where(app, until=end, **where, **given).line)}")


@command(_NAME, _ALL, _TAG, _PREFIX, BY, NOTE, EXPECTED)
def resume(app: Any, name: str | None, expected: str | None, **given: Any) -> None:
    """End the pause of an entry, or of many. Slots that passed during the pause do not run."""
    where = _where(name, expected, given)
    if name is not None:
        found = periodic.resume(app, name, expected=expected, **given)
        say_entry(app, found)
        if found.paused_by:
            note(f"the pause of {found.paused_by} still holds it: `celery neli schedule pauses` shows how to end that")
        return
    for ended in periodic.resume_where(app, **where, **given):
        say(f"resumed: {printable(ended.what)}")


@command(click.option("--json", "as_json", is_flag=True, help="Print one JSON array."))
def pauses(app: Any, as_json: bool) -> None:
    """Show the pauses of many entries that hold now, and who made them."""
    found = periodic.pauses(app)
    if as_json:
        say_json(as_text([each.as_dict() for each in found]))
    elif not found:
        say("no pause of many entries holds")
    else:
        rows = [
            (each.what, utc(each.until), utc(each.at), each.by, each.note, f"resume {each.option}") for each in found
        ]
        table(("PAUSED", "UNTIL", "SINCE", "BY", "NOTE", "END IT WITH"), rows)


def _where(name: str | None, expected: str | None, given: dict[str, Any]) -> dict[str, Any]:
    where = {"all": given.pop("all_"), "tag": given.pop("tag"), "prefix": given.pop("prefix")}
    many = any(each not in (None, False) for each in where.values())
    if (name is not None) == many:
        raise ConfigurationError("which entries? give either a NAME, or one of --all, --tag and --prefix")
    if many and expected is not None:
        raise ConfigurationError(f"--expected {printable(repr(expected))}: is for one entry; give its NAME")
    return where
