"""What is different between a file and the schedule topic, and what applying the file would do. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from celery_neli.exceptions import ConfigurationError
from celery_neli.periodic.as_code.document import Document
from celery_neli.periodic.as_code.entry import Wanted
from celery_neli.periodic.as_code.reading import Mistake
from celery_neli.periodic.definition import check_comes, same
from celery_neli.printable import printable
from celery_neli.schedule_topic.codec import Definition
from celery_neli.schedule_topic.values import shown

Action = Literal["add", "change", "prune", "foreign"]
ADD: Final = "add"
CHANGE: Final = "change"
PRUNE: Final = "prune"
FOREIGN: Final = "foreign"
_FIELDS: Final = ("task", "schedule", "args")


@dataclass(frozen=True, slots=True, kw_only=True)
class Present:
    """What there is now.

    `entries`: the runtime entries. `unreadable`: why a definition could not be read. `static`: the names that
    `beat_schedule` has.
    """

    entries: Mapping[str, Definition]
    unreadable: Mapping[str, str] = field(default_factory=dict)
    static: Collection[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One field of an entry: JSON's values, None if it is not there."""

    field: str
    old: Any
    new: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What is to be done with one entry. `version`: of the entry that was compared, "" if there was none."""

    action: Action
    name: str
    wanted: Wanted | None = None
    differences: tuple[Difference, ...] = ()
    version: str = ""
    owner: str = ""  # who has it now

    @property
    def puts(self) -> bool:
        """Return True if the definition itself changes, not its pause alone."""
        return self.action == ADD or any(each.field != "paused" for each in self.differences)

    @property
    def begins(self) -> bool:
        """Return True if the entry gets a schedule that it does not have yet."""
        return self.action == ADD or any(each.field == "schedule" for each in self.differences)


@dataclass(frozen=True, slots=True)
class Plan:
    """All steps, by name; what stands in the way; what is good to know."""

    steps: list[Step] = field(default_factory=list)
    mistakes: list[Mistake] = field(default_factory=list)
    notes: list[Mistake] = field(default_factory=list)
    unchanged: int = 0

    def of(self, action: Action) -> list[Step]:
        """Return the steps of one kind."""
        return [each for each in self.steps if each.action == action]


def compare(app: Any, document: Document, present: Present, *, adopt: bool, now: float) -> Plan:
    """Return what would make the schedule what the file says.

    An entry that exists and has another owner than the file is foreign, unless ``adopt`` takes it over (for the file's
    owner, which it must have). Entries of the
    file's owner that the file does not name are to be pruned. ``now`` is in Unix seconds.
    """
    plan, unchanged = Plan(), 0
    for name, wanted in document.entries.items():
        if name in present.static:
            text = "beat_schedule has an entry of that name: change it there, or take it out of this file"
            plan.mistakes.append(Mistake(wanted.line, f"{printable(name)}: {text}"))
            continue
        if name in present.unreadable:
            text = f"its definition cannot be read here: {present.unreadable[name]}: remove it first"
            plan.mistakes.append(Mistake(wanted.line, f"{printable(name)}: {text}"))
            continue
        step = _step(document.owner, name, wanted, present.entries.get(name), adopt=adopt and bool(document.owner))
        if step is None:
            unchanged += 1
        elif step.action == FOREIGN or not step.begins or _comes(app, step, plan, now):
            plan.steps.append(step)
    if document.owner:
        for name, found in present.entries.items():
            if found.owner == document.owner and name not in document.entries:
                plan.steps.append(Step(action=PRUNE, name=name, version=found.version, owner=found.owner))
    plan.steps.sort(key=lambda each: each.name)
    return Plan(plan.steps, plan.mistakes, plan.notes, unchanged)


def _step(owner: str, name: str, wanted: Wanted, found: Definition | None, *, adopt: bool) -> Step | None:
    if found is None:
        return Step(action=ADD, name=name, wanted=wanted)
    differences = tuple(_differences(owner, wanted, found))
    if found.owner != owner and not adopt:
        action: Action = FOREIGN
    elif not differences:
        return None
    else:
        action = CHANGE
    return Step(
        action=action,
        name=name,
        wanted=wanted,
        differences=differences,
        version=found.version,
        owner=found.owner,
    )


def settled(step: Step, owner: str, found: Definition | None) -> bool:
    """Return True if an entry is by now what a step wants, because somebody else did the same."""
    if step.wanted is None:
        return found is None
    return found is not None and not any(_differences(owner, step.wanted, found))


def _differences(owner: str, wanted: Wanted, found: Definition) -> Iterator[Difference]:
    """Yield the fields that differ; of a pause only if the file speaks of it: an operator's own survives."""
    new = wanted.definition
    for name in _FIELDS:
        if not same(getattr(new, name), getattr(found, name)):
            yield Difference(field=name, old=getattr(found, name), new=getattr(new, name))
    for name in ("kwargs", "options"):
        old_values, new_values = getattr(found, name), getattr(new, name)
        for key in sorted(old_values.keys() | new_values.keys()):
            if key not in old_values or key not in new_values or not same(old_values[key], new_values[key]):
                yield Difference(field=f"{name}.{printable(key, 80)}", old=old_values.get(key), new=new_values.get(key))
    if found.owner != owner:
        yield Difference(field="owner", old=found.owner or None, new=owner or None)
    if wanted.paused is not None:
        old = found.paused if found.until is None else "for a time"
        if old != wanted.paused:
            yield Difference(field="paused", old=old, new=wanted.paused)


def _comes(app: Any, step: Step, plan: Plan, now: float) -> bool:
    """Return True if the entry has a slot to come. A new one whose only time is over has done all that it should."""
    assert step.wanted is not None, "only an entry of the file is put"
    definition, place = step.wanted.definition, printable(step.name)
    try:
        check_comes(definition, step.name, app, after=now)
    except ConfigurationError as exc:
        over = step.action == ADD and (definition.schedule or "").startswith("at:")
        text = f"schedule = {shown(definition.schedule)}: its time is over: nothing is put" if over else str(exc)
        (plan.notes if over else plan.mistakes).append(Mistake(step.wanted.line, f"{place}: {text}"))
        return False
    return True


def lines_of(step: Step) -> Iterator[str]:
    """Yield a step as people read it."""
    wanted = step.wanted
    if step.action == FOREIGN:
        whose = f"is an entry of {shown(step.owner)}" if step.owner else "is there and has no owner"
        yield f"! {printable(step.name)}: {whose}: --adopt takes it over"
        return
    sign = {ADD: "+", CHANGE: "~", PRUNE: "-"}[step.action]
    if step.action == ADD and wanted is not None:
        definition = wanted.definition
        paused = ", paused" if wanted.paused else ""
        yield f"{sign} {printable(step.name)}: {printable(definition.task)}, {printable(definition.schedule)}{paused}"
        return
    yield f"{sign} {printable(step.name)}"
    for each in step.differences:
        yield f"    {each.field}: {_shown(each.old)} -> {_shown(each.new)}"


def as_dict(step: Step) -> dict[str, Any]:
    """Return a step as JSON has it."""
    fields = {each.field: {"old": each.old, "new": each.new} for each in step.differences}
    return {"name": step.name, "action": step.action, "owner": step.owner or None, "fields": fields}


def _shown(value: Any) -> str:
    return "-" if value is None else printable(value if isinstance(value, str) else json.dumps(value))
