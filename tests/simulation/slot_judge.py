"""What must never happen to a slot, and what must have happened to each in the end."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any
from uuid import UUID

from tests.simulation.judge import Failure
from tests.simulation.schedule import BORN, IMPORTED, MISSED, PERIODS, Topic, is_slot, slots_until

if TYPE_CHECKING:
    from celery_neli.beat.replicated.claims import Watermarks
    from tests.simulation.world import World

LATEST = 12.0
"""Seconds before the end of which all slots are settled."""


class Slots:
    """Which term published which slot of which entry under which id; with the policy `skip`, or else `send`."""

    def __init__(self, world: World, seed: int | str) -> None:
        self.judged = world.scenario.slots
        self.world = world
        self.rnd = random.Random(f"slots {seed}")
        self.skip = self.rnd.random() < 0.5
        skew = world.scenario.skew
        self.skews = [self.rnd.uniform(-skew, skew) for _ in range(world.scenario.members)]
        self.topics = [Topic(world) for _ in world.roles]
        self.terms: list[dict[tuple[str, float], set[int]]] = [{} for _ in world.roles]
        self.ids: list[dict[tuple[str, float], UUID]] = [{} for _ in world.roles]
        self.out: list[set[tuple[str, float]]] = [set() for _ in world.roles]
        self.found: list[dict[int, Watermarks | None]] = [{} for _ in world.roles]  # by term
        self.open: list[dict[int, set[str]]] = [{} for _ in world.roles]
        self.claimed: list[dict[tuple[str, int], float]] = [{} for _ in world.roles]  # by member and term
        self.untold: set[tuple[int, str, float, int]] = set()  # role, entry, slot, term
        self.doubled = self.owed = 0
        #: When an entry is imported (Unix); None: none is.
        self.imported = BORN + self.rnd.uniform(5, 40) if world.scenario.imports else None

    def fail(self, what: str) -> None:
        if self.judged:
            raise Failure("slot", what)

    def arrived(self, role: int, value: bytes) -> None:
        """A record is in the log."""
        if not self.judged or b'"claimed"' not in value:
            return
        record: dict[str, Any] = json.loads(value)
        claimed = (record.get("data") or {}).get("claimed")
        if claimed is not None:
            term = len(self.world.logs[role].values) if record["kind"] == "claim" else record["term"]
            author = record["member"].partition("/")[0], term
            self.claimed[role][author] = max(claimed, self.claimed[role].get(author, 0.0))

    def begun(self, role: int, term: int, marks: Watermarks | None) -> None:
        """A leader begins with these marks."""
        self.found[role][term] = marks
        if not self.judged:
            return
        if marks is None and _marked(self.world.logs[role].values, term):
            self.fail(f"term {term} of role {role} begins without marks, and earlier terms had some")
        # Where records may come late, a reader that begins at one need not have met the last word.
        scenario, values = self.world.scenario, self.world.logs[role].values
        if scenario.fifo and not scenario.late and not scenario.double:
            claim = json.loads(values[term])
            if claim["seen"] not in (None, -1) and _marks(claim.get("data")) != _marks(_newest(values, claim["seen"])):
                raise Failure("slot", f"the claim of term {term} of role {role} does not repeat {claim['seen']}'s data")

    def opened(self, role: int, term: int, names: set[str]) -> None:
        """... and finds these entries open."""
        self.open[role][term] = names

    def handed_back(self, role: int, term: int, marks: Watermarks) -> None:
        """A clean release leaves nothing in doubt but what was found in doubt."""
        found = self.found[role][term]
        if marks.claimed > max(marks.settled, 0.0 if found is None else found.claimed):
            self.fail(f"term {term} of role {role} is released with {marks}")

    def published(
        self, role: int, name: str, slot: float, task_id: UUID, term: int, now: float, *, told: bool = True
    ) -> None:
        """A message reached the task broker; its leader is `told` so, or takes it for a failure."""
        what = f"{name} {slot - BORN:g} of role {role}, term {term},"
        if not (self._is_imported(slot) if name == IMPORTED else is_slot(name, slot)) or slot > now:
            self.fail(f"{what} is no slot, or is early at {now - BORN:.3f}")
        authors = [author for author, claimed in self.claimed[role].items() if author[1] == term and claimed >= slot]
        if not authors:
            self.fail(f"{what} is published, and no record in the log claims it")
        terms = self.terms[role].setdefault((name, slot), set())
        if term in terms and (role, name, slot, term) not in self.untold:
            self.fail(f"{what} is published twice in this term")
        if not told:
            self.untold.add((role, name, slot, term))
        if self.ids[role].setdefault((name, slot), task_id) != task_id:
            self.fail(f"{what} has two ids")
        marks, opened = self.found[role][term], self.open[role][term]
        self.owed += marks is not None and marks.doubtful < slot <= marks.settled and name in opened
        if terms - {term}:
            self.doubled += 1
            if marks is not None:  # else nothing was left to know
                doubt = slot <= marks.doubtful and (slot > marks.settled or name in opened)
                if self.skip or not doubt:
                    self.fail(f"{what} was published in {terms}; in doubt: {doubt}, {marks}")
        terms.add(term)

    def left_out(self, role: int, name: str, slot: float, term: int) -> None:
        marks = self.found[role][term]
        if name == IMPORTED and self.imported is not None and (marks is None or marks.claimed < self.imported):
            self.fail(
                f"{name} {slot - BORN:g} of role {role} is left out in term {term}, and no leader had the entry before"
            )
        self.out[role].add((name, slot))

    def _is_imported(self, slot: float) -> bool:
        return self.imported is not None and slot in self._imported_until(slot)

    def _imported_until(self, last: float) -> list[float]:
        """The slots of the imported entry up to `last`, as exact as the microseconds of its last run."""
        assert self.imported is not None, "asked for before"
        ran = round(self.imported - MISSED, 6)
        return [round(ran + number, 6) for number in range(1, int(last - ran + 0.5) + 1) if ran + number <= last + 1e-6]

    def complete(self, until: float) -> None:
        """Each slot until shortly before the end was published, or told as left out."""
        for role, terms in enumerate(self.terms[: self.world.scenario.slot_roles]):
            for name in PERIODS:
                for slot in slots_until(name, BORN + until - LATEST):
                    if (name, slot) not in terms and (name, slot) not in self.out[role]:
                        self.fail(f"{name} {slot - BORN:g} of role {role} was never published")
                    if (name, slot) in self.out[role] and not self.skip:
                        self.fail(f"{name} {slot - BORN:g} of role {role} was left out")
            if self.imported is not None:
                for slot in self._imported_until(BORN + until - LATEST):
                    if (IMPORTED, slot) not in terms and (IMPORTED, slot) not in self.out[role]:
                        self.fail(f"{IMPORTED} {slot - BORN:g} of role {role} was never published")


def _marks(data: Any) -> Any:
    return None if data is None else {name: data[name] for name in data if name != "idle"}


def _term(values: list[bytes], last: int) -> list[Any]:
    """The records, up to `last`, of the term that the record there belongs to; its claim is the first."""
    of_last = json.loads(values[last])
    first = of_last.get("term", last)
    records = [(offset, json.loads(values[offset])) for offset in range(first, last + 1)]
    # A claim begins a term of its own, also a claim by the same member that lost.
    return [
        each for offset, each in records if each["member"] == of_last["member"] and each.get("term", offset) == first
    ]


def _newest(values: list[bytes], last: int) -> object:
    """The data of a term: its author's last word, in whatever order it came."""
    return max(_term(values, last), key=lambda each: each["seq"]).get("data")


def _marked(values: list[bytes], term: int) -> bool:
    """Whether any of the terms before `term` had marks, as far as its author could know."""
    seen = json.loads(values[term])["seen"]
    while seen is not None and seen >= 0:
        records = _term(values, seen)
        if any("claimed" in (each.get("data") or {}) for each in records):
            return True
        seen = records[0]["seen"]
    return False
