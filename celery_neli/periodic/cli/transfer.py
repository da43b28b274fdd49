"""`celery neli schedule import`: take over the entries of another scheduler."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import click

from celery_neli.periodic.cli.base import BY, command, note, table, utc, words
from celery_neli.printable import say


@command(
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
    BY,
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
    note(editor.not_run)  # an import may come before the change of the setting
    cells = [
        (each.name, each.action, words(each.schedule or "-"), utc(each.last), str(each.runs), "; ".join(each.notes))
        for each in rows
    ]
    table(("NAME", "ACTION", "SCHEDULE", "LAST", "RUNS", "NOTE"), cells)
    counts = Counter(each.action for each in rows)
    summary = ", ".join(f"{count} {action}" for action, count in counts.items()) or "nothing found"
    say(f"{found.what}: {summary}" + (" (dry run: nothing was written)" if dry_run else ""))
    note(found.warning)
    if counts["left out"]:
        raise click.exceptions.Exit(1)
