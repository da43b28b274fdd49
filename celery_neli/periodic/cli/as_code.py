"""`celery neli schedule export`, `diff` and `apply`: the runtime schedule as a file."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from celery_neli.periodic.cli.base import BY, Command, as_text, command, note
from celery_neli.printable import failure, printable, say, say_json

if TYPE_CHECKING:
    from celery_neli.periodic.as_code.document import Document
    from celery_neli.periodic.as_code.plan import Action, Plan, Step
    from celery_neli.periodic.as_code.reading import Mistake
    from celery_neli.periodic.editor import ScheduleEditor

FILE = click.argument("file", metavar="FILE")
TO_DO: Mapping[Action, str] = {
    "add": "to add", "change": "to change", "prune": "to prune", "foreign": "of another owner",
}  # fmt: skip
DONE: Mapping[Action, str] = {"add": "added", "change": "changed", "prune": "removed"}
DIFFERENT = 2  # the exit status of `diff`, as that of git and terraform


class _Diff(Command):
    """Differences have a status of their own, which a wrong option must not have."""

    def make_context(self, *args: Any, **given: Any) -> Any:
        """Make it as click does."""
        try:
            return super().make_context(*args, **given)
        except click.UsageError as exc:
            exc.exit_code = 1  # type: ignore[misc]
            raise


@command(
    click.option("--owner", help="Only the entries of this owner; '' means those without one."),
    click.option("--prefix", default="", help="Only entries whose names begin with this."),
    click.option("--tag", help="Only entries with this tag among their neli_tags."),
    click.option("--json", "as_json", is_flag=True, help="Print JSON, not YAML."),
)
def export(app: Any, owner: str | None, prefix: str, tag: str | None, as_json: bool) -> None:
    """Print the runtime entries as a file for `diff` and `apply`. The same entries give the same bytes.

    A file belongs to one owner. An entry that is paused until a time is printed without its pause.
    """
    from celery_neli.periodic.as_code import applying, writing
    from celery_neli.periodic.editor import ScheduleEditor

    editor = ScheduleEditor(app)
    present = applying.present_of(editor)
    found = {
        name: each
        for name, each in present.entries.items()
        if name.startswith(prefix)
        and (owner is None or each.owner == owner)
        and (tag is None or tag in (each.options.get("neli_tags") or ()))
    }
    owners = sorted({each.owner for each in found.values()})
    if len(owners) > 1:
        named = ", ".join(printable(repr(each), 60) for each in owners)
        raise click.ClickException(f"the entries have {len(owners)} owners ({named}), and a file has one: name --owner")
    left_out = [f"{printable(name)}: {why}" for name, why in present.unreadable.items() if name.startswith(prefix)]
    hidden = "beat_schedule has an entry of that name, and hides the one that was put at runtime"
    left_out += [f"{printable(name)}: {hidden}" for name in found if name in present.static]
    write = writing.as_json if as_json else writing.as_yaml
    text = write("".join(owners), ((name, each) for name, each in found.items() if name not in present.static))
    click.echo(text, nl=False)
    note(editor.not_run)
    for line in left_out:
        say(f"left out: {line}", err=True)
    if left_out:
        raise click.exceptions.Exit(1)


@command(FILE, click.option("--json", "as_json", is_flag=True, help="Print one JSON array."), cls=_Diff)
def diff(app: Any, file: str, as_json: bool) -> None:
    """Show what is different between FILE (- for standard input) and the runtime schedule; change nothing.

    A line begins with + for an entry to add, ~ to change, - that `apply --prune` would remove, and ! for an entry of
    another owner. The exit status is 0 if nothing is different, 2 if something is, and 1 if that cannot be known.
    """
    from celery_neli.periodic.as_code import applying
    from celery_neli.periodic.as_code import plan as plans

    document, editor = _read(app, file)
    plan = plans.compare(app, document, applying.present_of(editor), adopt=False, now=editor.now)
    _stop_at(document, plan.mistakes)
    if as_json:
        say_json(as_text([plans.as_dict(each) for each in plan.steps]))
    else:
        _say_steps(plan.steps)
        say(f"{_name_of(file)}: {_counts(plan, TO_DO)}")
    _notes(document, editor, plan)
    if plan.steps:
        raise click.exceptions.Exit(DIFFERENT)


@command(
    FILE,
    click.option("--prune", is_flag=True, help="Remove entries of the file's owner that the file does not name."),
    click.option("--adopt", is_flag=True, help="Take over entries that the file names and another owner has."),
    click.option("--dry-run", is_flag=True, help="Check everything and show what would be done; write nothing."),
    click.option("--note", "why", help="Why, for `show`, of changes for which the file has no note of its own."),
    BY,
)
def apply(app: Any, file: str, prune: bool, adopt: bool, dry_run: bool, why: str | None, by: str | None) -> None:
    """Make the runtime schedule what FILE (- for standard input) says: YAML, or JSON.

    Everything is checked first, and all mistakes are listed; if there is one, nothing is written. A pause of which the
    file says nothing stays. The exit status is 0 if the schedule is as the file says, and 1 if not.
    """
    from celery_neli.periodic.as_code import applying
    from celery_neli.periodic.as_code.plan import PRUNE, Plan

    document, editor = _read(app, file, by=by, note=why)
    if editor.not_run is not None:
        raise click.ClickException(f"{editor.not_run}: nothing was changed")
    ready = applying.prepare(editor, document, adopt=adopt, prune=prune)
    _stop_at(document, ready.mistakes)
    late = {} if dry_run else applying.apply(editor, ready)
    done = Plan([each for each in ready.steps.values() if each.name not in late], unchanged=ready.plan.unchanged)
    _say_steps(done.steps)
    for why_not in late.values():
        say(f"conflict: {why_not}", err=True)
    left = len(ready.plan.of(PRUNE))
    if left and not prune:
        entries, them = ("1 entry", "it") if left == 1 else (f"{left} entries", "them")
        note(f"the file does not name {entries} of {printable(document.owner)}: apply --prune would remove {them}")
    _notes(document, editor, ready.plan)
    conflicts = f", {len(late)} left as somebody else changed them" if late else ""
    dry = " (dry run: nothing was written)" if dry_run else ""
    say(f"{_name_of(file)}: {_counts(done, DONE)}{conflicts}{dry}")
    if late:
        raise click.exceptions.Exit(1)


def _read(app: Any, file: str, **given: Any) -> tuple[Document, ScheduleEditor]:
    """Return what a file wants and an editor of the schedule. Ends the command if the file has mistakes."""
    from celery_neli.periodic.as_code.document import read
    from celery_neli.periodic.as_code.reading import MOST_BYTES
    from celery_neli.periodic.editor import ScheduleEditor

    def some_of(stream: BinaryIO) -> bytes:
        return stream.read(MOST_BYTES + 1)

    try:
        if file == "-":
            data = some_of(sys.stdin.buffer)
        else:
            with Path(file).open("rb") as stream:
                data = some_of(stream)
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise click.ClickException(f"{printable(file)} cannot be read: {reason}") from None
    document = read(app, data, file=_name_of(file))
    _stop_at(document, document.mistakes)
    return document, ScheduleEditor(app, owner=document.owner or None, **given)


def _stop_at(document: Document, mistakes: Iterable[Mistake]) -> None:
    """End the command if there are mistakes, each in a line."""
    lines = [document.at(each) for each in sorted(mistakes)]
    if not lines:
        return
    for line in lines:
        say(line, err=True)
    count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
    raise failure(ValueError(f"{count} in {document.file}: nothing was changed"))


def _notes(document: Document, editor: ScheduleEditor, plan: Plan) -> None:
    """Say what is good to know: what the file has that cannot come, and tasks that this app does not know."""
    for each in plan.notes:
        note(document.at(each))
    seen: set[str] = set()
    for step in plan.steps:
        task = step.wanted.definition.task if step.wanted is not None and step.puts else None
        if step.wanted is not None and task is not None and task not in editor.app.tasks and task not in seen:
            seen.add(task)
            unknown = f"this app does not know the task {task!r}; the workers must know it"
            note(f"{document.file}:{step.wanted.line}: {unknown}")


def _say_steps(steps: Iterable[Step]) -> None:
    from celery_neli.periodic.as_code.plan import lines_of

    for step in steps:
        for line in lines_of(step):
            say(line)


def _counts(plan: Plan, words: Mapping[Action, str]) -> str:
    """Return how many entries there are of each kind, in words."""
    counts = [(len(plan.of(action)), word) for action, word in words.items()]
    return (
        ", ".join(f"{count} {word}" for count, word in (*counts, (plan.unchanged, "unchanged")) if count) or "nothing"
    )


def _name_of(file: str) -> str:
    return "standard input" if file == "-" else file
