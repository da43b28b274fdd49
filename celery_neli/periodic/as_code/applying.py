"""Make the schedule what a file says, as `plan` found it: every entry is changed from the version that was compared.

Guaranteed: nothing is written while any step is known to be impossible. Each entry is written as one record: what is
wanted, or nothing. An entry that somebody else changed in between stays as they left it, is named, and holds up no
other. If the process dies, some entries are written and the others are not; the same file once more writes the others.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from kombu.utils.json import loads

from celery_neli.exceptions import Conflict, NeliError
from celery_neli.periodic.as_code.document import Document
from celery_neli.periodic.as_code.plan import ADD, FOREIGN, PRUNE, Plan, Present, Step, compare, lines_of, settled
from celery_neli.periodic.as_code.reading import Mistake
from celery_neli.periodic.conflicts import conflict
from celery_neli.periodic.definition import awake
from celery_neli.periodic.editor import Edit, ScheduleEditor
from celery_neli.periodic.edits import pausing, removing, resuming
from celery_neli.printable import printable
from celery_neli.schedule_topic.codec import Definition


@dataclass(frozen=True, slots=True)
class Prepared:
    """Steps to be done and the changes that do them, by name. Nothing may be done if there are `mistakes`."""

    plan: Plan
    steps: dict[str, Step] = field(default_factory=dict)
    edits: dict[str, list[Edit]] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)


def present_of(editor: ScheduleEditor) -> Present:
    """Return what there is now. Blocks while the whole topic is read."""
    known = editor.known
    return Present(
        entries={name: awake(each, editor.now) for name, each in known.definitions.items() if not each.static},
        unreadable=known.unreadable,
        static={*editor.static, *editor.refused},
    )


def prepare(editor: ScheduleEditor, document: Document, *, adopt: bool = False, prune: bool = False) -> Prepared:
    """Return what applying a file means, with all that stands in its way. Blocks while the whole topic is read."""
    plan = compare(editor.app, document, present_of(editor), adopt=adopt, now=editor.now)
    ready = Prepared(plan, mistakes=[*plan.mistakes])
    for flag, given in {"--prune": prune, "--adopt": adopt}.items():
        if given and not document.owner:
            line = document.lines.get(("owner",), 1)
            text = f"owner is missing, and {flag} needs one: write 'owner: team-billing'"
            ready.mistakes.append(Mistake(line, text))
    for step in plan.steps:
        line = step.wanted.line if step.wanted is not None else 1
        if step.action == FOREIGN:
            ready.mistakes.append(Mistake(line, next(lines_of(step)).removeprefix("! ")))
        elif prune or step.action != PRUNE:
            try:
                ready.edits[step.name] = _edits_of(editor, step)
            except NeliError as exc:
                ready.mistakes.append(Mistake(line, f"{printable(step.name)}: {exc}"))
            ready.steps[step.name] = step
    return ready


def apply(editor: ScheduleEditor, ready: Prepared) -> dict[str, str]:
    """Make the changes. Return those that were not made, because somebody else was faster: why, by name. Blocks.

    Raises:
        NeliError: Kafka does not answer, or a change is impossible. Then some entries may have been written.
    """
    waiting = dict(ready.steps)
    late: dict[str, str] = {}
    while waiting:
        try:
            editor.change(*chain.from_iterable(ready.edits[name] for name in waiting))
        except Conflict as exc:
            known = editor.look(waiting)
            for name, step in [*waiting.items()]:
                there = known.definitions.get(name) or known.removed.get(name)
                living = "" if there is None or there.removed else there.version
                last = there.changes[-1] if there is not None and there.changes else None
                if name not in exc.names and living == step.version:
                    continue  # nothing was written in this round: once more, without those that cannot be
                del waiting[name]
                found = None if there is None or there.removed else awake(there, editor.now)
                ours = name not in exc.names and last is not None and (last.at, last.by) == (editor.now, editor.by)
                if not ours and not settled(step, editor.owner, found):
                    late[name] = str(conflict(known, name, step.version))
        else:
            break
    return late


def _edits_of(editor: ScheduleEditor, step: Step) -> list[Edit]:
    if step.action == PRUNE or step.wanted is None:
        return [removing(editor, step.name, expected=step.version)]
    wanted, expected = step.wanted, step.version
    edits = []
    if step.puts:
        new = wanted.definition
        args, kwargs, options = (_revived(each) for each in (new.args, new.kwargs, new.options))
        edits.append(editor.to_put(step.name, new.task, new.schedule, args, kwargs, options, expected=expected))
    if wanted.paused and (step.action == ADD or _changes_pause(step)):
        edits.append(pausing(editor, step.name, expected=expected))
    elif wanted.paused is False and _changes_pause(step):
        edits.append(resuming(editor, step.name, expected=expected))
    return [_noted(each, wanted.note) for each in edits] if wanted.note else edits


def _noted(edit: Edit, note: str) -> Edit:
    """Return the change with the note of the file."""

    def plan(old: Definition | None) -> tuple[Definition, str] | tuple[Definition, str, str] | None:
        planned = edit.plan(old)
        return None if planned is None else (planned[0], planned[1], note)

    return replace(edit, plan=plan)


def _changes_pause(step: Step) -> bool:
    return any(each.field == "paused" for each in step.differences)


def _revived(value: Any) -> Any:
    decode: Any = loads  # it comes without types
    return decode(json.dumps(value))
