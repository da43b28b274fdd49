"""`celery neli schedule backfill`."""

from __future__ import annotations

from contextlib import closing
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import click

from celery_neli.periodic.cli.base import BY, NAME, as_text, command, note, table
from celery_neli.printable import printable, say, say_json

if TYPE_CHECKING:
    from celery_neli.backfill.plan import Backfilled

WORST = 1  # the exit status if anything is left, failed or in doubt


@command(
    NAME,
    click.option(
        "--from", "start", required=True, metavar="WHEN", help="2h, 7d ago (0s is now), or 2026-12-01T07:00Z."
    ),
    click.option("--to", "end", required=True, metavar="WHEN", help="Likewise; a slot at this time is included."),
    click.option("--dry-run", is_flag=True, help="Show what would be done; write and send nothing."),
    click.option("--yes", is_flag=True, help="Do not ask."),
    click.option(
        "--in-doubt", type=click.Choice(("send", "skip")), default="skip", show_default=True,
        help="What becomes of slots that may have been sent.",
    ),
    click.option("--limit", type=int, default=1_000, show_default=True, help="How many slots the span may have."),
    click.option("--rate", type=float, default=10.0, show_default=True, help="Messages a second, at most."),
    click.option("--sequential", is_flag=True, help="Wait for the end of each task before the next one is sent."),
    click.option("--force", is_flag=True, help="Also where the run history cannot tell what ran, or not be written."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    BY,
)  # fmt: skip
def backfill(app: Any, name: str, start: str, end: str, dry_run: bool, yes: bool, as_json: bool, **given: Any) -> None:
    """Send the slots of the entry NAME in a span of time that were not sent, with their own ids.

    What was sent is known by the run history and is not sent again: the same command may be repeated, and goes on where
    it was interrupted. The exit status is 0 if all is done, 1 if it was refused, or if any slot failed, is in doubt or
    is left, 2 for a usage error.
    """
    from celery_neli.backfill.api import Job
    from celery_neli.backfill.plan import SEND
    from celery_neli.backfill.sending import count

    begin, finish = (_time(text, option) for text, option in ((start, "--from"), (end, "--to")))
    with closing(Job(app, name, begin, finish, **given)) as job:
        plan = job.plan
        for each in plan.notes:
            note(each)
        done, sends = plan.slots, sum(each.action == SEND for each in plan.slots)
        if not as_json:
            _table(done)
        if sends and not dry_run:
            if not yes:
                click.confirm(f"send {sends} task{'s' if sends > 1 else ''} now?", abort=True, err=True)
            known = len(plan.notes)
            done = job.run(None if as_json else _progress)
            for each in plan.notes[known:]:
                note(each)
        counted = list(count(done))
        if as_json:
            result = {"entry": plan.name, "dry_run": dry_run, "notes": plan.notes, "problem": job.problem}
            say_json(as_text({**result, "slots": [each.as_dict() for each in done]}, 3))
        else:
            say(f"{printable(plan.name)}: {', '.join(counted) or 'no slots'}" + (" (dry run)" if dry_run else ""))
        if job.problem:
            note(f"{job.problem}; the same command continues")
        doubt = any(each.note.startswith("in doubt") and each.action == "skipped" for each in done)
        if doubt and not as_json:
            note("slots in doubt may have been sent: --in-doubt send sends them")
    if doubt or any(each.action in ("failed", "in doubt", "left") for each in done):
        raise click.exceptions.Exit(WORST)


def _time(text: str, option: str) -> datetime:
    from celery_neli.periodic.run_history import since_of

    found = since_of(text, option)
    return datetime.now(timezone.utc) - found if isinstance(found, timedelta) else found


def _table(slots: list[Backfilled]) -> None:
    if slots:
        table(("SLOT", "ID", "ACTION", "NOTE"), [(_slot(each), each.id, each.action, each.note) for each in slots])


def _progress(each: Backfilled) -> None:
    say(f"{_slot(each)}  {each.action}" + (f"  {printable(each.note)}" if each.note else ""))


def _slot(each: Backfilled) -> str:
    return f"{each.slot.isoformat(' ').replace('+00:00', '')}Z"
