"""`celery neli schedule runs` and `next`: what became of slots, and which ones come."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from celery_neli.periodic.cli.base import WIDEST, as_text, command, table, utc
from celery_neli.printable import printable, say, say_json

BY_HAND = "by hand"

if TYPE_CHECKING:
    from celery_neli.history.runs import Run


@command(
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
        say_json(as_text([each.as_dict() for each in found]))
        return
    if not found:
        say("no runs recorded" + (f" of {printable(name)}" if name is not None else ""))
        return
    rows = [_cells(each, with_entry=name is None) for each in found]
    table([*rows[0]], [[*row.values()] for row in rows])


def _cells(run: Run, *, with_entry: bool) -> dict[str, str]:
    """Return one line of the table of runs, by the heads of its columns."""
    return {
        "SLOT": "by hand" if run.slot is None and (run.outcome is None or run.policy == BY_HAND) else utc(run.slot),
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
    if run.policy in ("backfill", BY_HAND):
        yield f"{run.policy}, {run.member}" + (": may have been sent" if run.outcome == "sending" else "")
    elif run.policy and run.policy != run.in_doubt:
        yield f"policy {run.policy}"
    if run.in_doubt:
        yield f"in doubt: {run.in_doubt}"
    if run.count > 1:
        yield f"{run.count} slots since {utc(run.first)}"
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


@command(
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
        say_json(as_text([each.as_dict() for each in found.runs]))
        return
    say(f"{printable(found.what, WIDEST)}, shown in {found.zone}")
    if not found.runs:
        say("no slot will come")
        return
    rows = [
        (
            f"{each.slot:%a} {each.slot.isoformat(' ', 'seconds')}",
            utc(each.slot.timestamp()),
            "yes" if each.runs else "no",
            "; ".join(each.notes),
        )
        for each in found.runs
    ]
    table(("SLOT", "UTC", "RUNS", "NOTE"), rows)
