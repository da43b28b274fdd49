"""`neli_expires`: a task that is not worth running so many seconds after its slot."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from celery.utils.time import maybe_iso8601

from celery_neli.beat.replicated.standalone import ReplicatedScheduler
from celery_neli.exceptions import ConfigurationError
from celery_neli.periodic.definition import define
from celery_neli.schedule.policies import Misfire
from tests.unit.schedulers import make_app
from tests.unit.schedules import Desk
from tests.unit.test_replicated import NOON, SECOND, Every, Rig

if TYPE_CHECKING:
    from celery import Celery


class Sending(ReplicatedScheduler):
    """Sends as Celery does, into the app's queue."""


def expiries(app: Celery) -> list[datetime | None]:
    """Take the messages out of the queue: when each expires."""
    found: list[datetime | None] = []
    with app.connection_for_read() as connection:
        queue = connection.SimpleQueue(app.conf.task_default_queue)
        while queue.qsize():
            found.append(maybe_iso8601(queue.get(block=False).headers["expires"]))
    return found


@pytest.mark.parametrize("late", [0.0, 3.5])
def test_the_message_expires_so_many_seconds_after_its_slot(late: float) -> None:
    """However late it is sent."""
    rig = Rig(Sending)
    rig.add("e", 10, options={"neli_expires": 5})
    rig.now = 10 + late
    rig.scheduler.tick()
    assert expiries(rig.app) == [NOON + 15 * SECOND]


def test_each_slot_has_an_expiry_of_its_own() -> None:
    """Messages of one kind are built from a template: this is no part of it."""
    rig = Rig(Sending)
    rig.add("e", 10, options={"neli_expires": 2.5})
    rig.ticks(until=41)
    assert expiries(rig.app) == [NOON + timedelta(seconds=10 * n + 2.5) for n in range(1, 5)]


def test_expires_counts_from_the_sending() -> None:
    """As in Celery: of a slot that is late, the task may run as much later."""
    rig = Rig(Sending)
    rig.add("e", 10, options={"expires": 5})
    rig.now = 13.5
    rig.scheduler.tick()
    assert expiries(rig.app) == [NOON + 18.5 * SECOND]


@pytest.mark.parametrize("policy", ["fire_once", "fire_all", "skip"])
def test_a_slot_that_has_expired_is_left_out_with_a_line(policy: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever the misfire policy; the next slot runs."""
    rig = Rig()
    rig.add("e", 10, options={"neli_expires": 4, "neli_misfire": policy})
    rig.now = 38.0
    rig.ticks(until=41)
    assert rig.slots() == [40]
    assert "slots missed entry=e left_out=3 " in caplog.text


def test_the_shortest_bound_counts() -> None:
    """Of a grace and an expiry."""
    rig = Rig()
    rig.add("e", 10, options={"neli_expires": 25, "neli_misfire": "fire_all", "neli_misfire_grace": 12})
    rig.now = 38.0
    rig.ticks(until=39)
    assert rig.slots() == [30]


def test_a_schedule_without_slots_expires_from_the_sending() -> None:
    """There is nothing else to count from."""
    rig = Rig(Sending)
    rig.add("e", Every([(False, 5), (True, 20), (False, 20)], app=rig.app), options={"neli_expires": 7})
    rig.ticks(until=6)
    [at] = expiries(rig.app)
    assert at is not None
    assert NOON + 11.9 * SECOND <= at <= NOON + 12.1 * SECOND


@pytest.mark.parametrize("value", [0, -1, "5", True, float("nan"), float("inf"), 1e300, timedelta(seconds=5)])
def test_an_expiry_that_is_no_number_of_seconds_is_refused(value: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Where it is given, with entry, option and value."""
    entry = {"task": "t", "schedule": 10, "options": {"neli_expires": value}}
    rig = Rig(beat_schedule={"e": entry, "good": {"task": "t", "schedule": 10}})
    assert set(rig.scheduler.schedule) == {"good"}
    assert f"entry=e is left out: neli_expires = {value!r}: give a number of seconds above 0" in caplog.text
    with pytest.raises(ConfigurationError, match="neli_expires"):
        Misfire(expires=value)


def test_two_expiries_are_refused() -> None:
    """In a `beat_schedule` as at runtime: which one counts would be a guess."""
    options = {"neli_expires": 5, "expires": 5}
    with pytest.raises(ConfigurationError, match="beat entry 'e': neli_expires and expires are both set: give"):
        Rig().add("e", 10, options=options)
    with pytest.raises(ConfigurationError, match="neli_expires and expires"):
        define(make_app(), "e", "t", "PT1M", options=options)


def test_it_may_be_set_at_runtime() -> None:
    """It is checked and stored as other options are; a run that is asked for now has no slot, and expires from now."""
    desk = Desk()
    desk.put("e", options={"neli_expires": 300})
    assert desk.look("e").options == {"neli_expires": 300}
    before = datetime.now(timezone.utc)
    desk.editor().run_now("e")
    [at] = expiries(desk.app)
    assert at is not None
    assert before + timedelta(seconds=300) <= at <= datetime.now(timezone.utc) + timedelta(seconds=300)
    with pytest.raises(ConfigurationError, match="neli_expires"):
        desk.put("f", options={"neli_expires": 0})
