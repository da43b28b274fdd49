"""What the leaders of one role dispatch, and the compacted topic that keeps how far they came: late, lossy, ordered."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, UUID, uuid5

from celery import Celery
from celery.beat import ScheduleEntry
from celery.schedules import crontab, schedule

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulation.world import World

BORN = 1_700_000_025.25
"""Wall-clock time (Unix) at the beginning of true time; the first whole minute comes 34.75 s later."""
PERIODS = {"interval": 1.0, "crontab": 60.0}


def new_entries() -> dict[str, Any]:
    """Real entries that have never run: one that is due a second after `BORN` and every second, one every minute."""
    app = _app()
    born = datetime.fromtimestamp(BORN, timezone.utc)
    schedules = {"interval": schedule(run_every=1.0, app=app), "crontab": crontab(app=app)}
    return {
        name: ScheduleEntry(name=name, task="task", schedule=when, last_run_at=born, app=app)
        for name, when in schedules.items()
    }


@lru_cache
def _app() -> Celery:
    return Celery("simulation", set_as_current=False)


def is_slot(name: str, slot: float) -> bool:
    """Whether the entry is due at `slot`, whoever runs it: intervals do not drift."""
    return slot > BORN and (slot - (BORN if name == "interval" else 0.0)) % PERIODS[name] == 0


def slots_until(name: str, last: float) -> list[float]:
    """All slots from the first to `last`."""
    first = BORN + 1.0 if name == "interval" else BORN // 60.0 * 60.0 + 60.0
    return [first + number * PERIODS[name] for number in range(int((last - first) // PERIODS[name]) + 1)]


IMPORTED = "imported"
"""An entry that comes later, with slots of some time before; every second, as the interval."""
MISSED = 10.5
"""Seconds from its last run, under another scheduler, until it is imported."""


def imported_entry(at: float) -> Any:
    """The entry that is imported at `at` (Unix)."""
    last = datetime.fromtimestamp(at - MISSED, timezone.utc)
    return ScheduleEntry(name=IMPORTED, task="task", schedule=schedule(1.0, app=_app()), last_run_at=last, app=_app())


def task_id(role: int, name: str, slot: datetime) -> UUID:
    return uuid5(NAMESPACE_URL, f"role {role}\n{name}\n{slot.isoformat()}")


@dataclass(frozen=True)
class State:
    """How far an entry has come; `open`: the mark *done* does not cover it."""

    last: float
    epoch: int
    open: bool


class Topic:
    """The states of one role's entries. One writer's states arrive in their order, or not at all."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.states: dict[str, State] = {}
        self._behind: dict[str, float] = {}  # when the last state of each writer arrives
        self._flushed: dict[str, float] = {}  # until when what arrives of each writer is old

    def write(self, writer: str, name: str, state: State, confirmed: Callable[[], None]) -> None:
        world, rnd = self.world, self.world.slots.rnd
        if not world.calm and rnd.random() < world.scenario.state_lost:
            return
        takes = rnd.uniform(0.001, 0.05)
        if not world.calm and rnd.random() < world.scenario.state_late:
            takes = rnd.uniform(0, 8)
        self._behind[writer] = arrives = max(world.now + takes, self._behind.get(writer, 0.0) + 1e-6)
        world.at(arrives, self._arrive, writer, name, state, confirmed)

    def flush(self, writer: str, states: dict[str, State]) -> None:
        """The writer waits until all that it wrote is there, and these."""
        self._flushed[writer] = self._behind.get(writer, 0.0)
        for name, state in states.items():
            self._put(name, state)

    def _put(self, name: str, state: State) -> None:
        if name not in self.states or state.epoch >= self.states[name].epoch:
            self.states[name] = state

    def _arrive(self, writer: str, name: str, state: State, confirmed: Callable[[], None]) -> None:
        if self.world.now > self._flushed.get(writer, -1.0):
            self._put(name, state)
        confirmed()
