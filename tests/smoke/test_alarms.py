"""Alarms of real processes: what did not run is told once, in time, by a process that lives."""

from __future__ import annotations

import json
import signal
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from tests.processes import wait_until
from tests.smoke.members import members

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.smoke.members import Members

pytestmark = [pytest.mark.smoke, pytest.mark.slow]

ALLOWANCE = 8.0
LATE = 10.0  # seconds after the allowance within which an alarm must have come


def entry(task: str = "alarms.quick", every: float = 4.0, **options: Any) -> dict[str, Any]:
    return {"task": task, "schedule": every, "options": {"neli_overdue": ALLOWANCE, **options}}


@pytest.fixture
def fleet(tmp_path: Path, names: Callable[[str], str], redis_url: str, kafka: str) -> Iterator[Members]:
    """A fleet without members, with one entry that is due each four seconds."""
    settings = {
        "neli_group": names("g"), "neli_kafka": kafka, "broker_url": redis_url,
        "broker_connection_retry_on_startup": True, "beat_schedule": {"tick": entry()},
    }  # fmt: skip
    with members(tmp_path, project="tests.smoke.alarm_project", **settings) as started:
        yield started


def alarms(fleet: Members, **wanted: Any) -> list[dict[str, Any]]:
    """The alarms so far that have these values."""
    path = fleet.directory / "alarms"
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines]
    return [each for each in found if wanted.items() <= each.items()]


def wait_alarm(fleet: Members, *, timeout: float = 40.0, **wanted: Any) -> dict[str, Any]:
    found = wait_until(lambda: alarms(fleet, **wanted), timeout=timeout, what=f"an alarm, see {fleet.directory}")
    return found[0]


def assert_once_and_in_time(fleet: Members) -> None:
    found = alarms(fleet)
    slots = [(each["alarm"], each["entry"], each["slot"]) for each in found]
    assert len(slots) == len(set(slots)), slots
    assert len({each["by"] for each in found}) == 1, "one process of the fleet tells"
    late = [each["at"] - each["deadline"] for each in found]
    assert all(0 <= each <= LATE for each in late), late


def assert_each_slot_once(fleet: Members) -> None:
    """Of the one entry that is due each four seconds, from the first alarm on."""
    slots = [each["slot"] for each in alarms(fleet)]
    assert slots == sorted(set(slots)), "each slot once"
    assert {round(later - each, 3) for each, later in pairwise(slots)} == {4.0}, "none left out"


def settled(fleet: Members, beat: Any) -> None:
    """Wait until slots are sent and the watcher knows: the first ones are behind."""
    wait_until(lambda: "leadership acquired role=leader" in beat.log, timeout=60, what="a leader")
    time.sleep(6)


def test_a_worker_tells_when_all_beats_are_dead_and_a_failover_within_the_allowance_is_no_alarm(fleet: Members) -> None:
    fleet.worker("-P", "solo", name="worker1")
    beats = [fleet.beat(name=f"beat{number}") for number in (1, 2)]
    leader = wait_until(
        lambda: next((each for each in beats if "leadership acquired role=leader" in each.log), None),
        timeout=60, what="a leader",
    )  # fmt: skip
    time.sleep(8)
    leader.signal(signal.SIGKILL)
    other = next(each for each in beats if each is not leader)
    wait_until(lambda: "leadership acquired role=leader" in other.log, timeout=30, what="a successor")
    time.sleep(ALLOWANCE + LATE)
    assert alarms(fleet) == [], "the fail-over took less than the allowance"
    other.signal(signal.SIGKILL)
    killed = time.time()
    found = wait_alarm(fleet, entry="tick")
    assert (found["by"], found["reason"], found["count"]) == ("worker1", "not_sent", 1)
    assert found["slot"] > killed - 4.5
    wait_until(lambda: len(alarms(fleet)) >= 3, timeout=30, what="an alarm for each slot")
    assert_once_and_in_time(fleet)
    assert "slot overdue entry=tick" in next(each for each in fleet.all if each.name == "worker1").log


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_each_reason_is_told(fleet: Members, pool: str) -> None:
    """Nobody consumes a queue, an entry cannot be sent, a task does not end."""
    fleet.settings["beat_schedule"] = {
        "fine": entry(),
        "unheard": entry(queue="nobody"),
        "refused": entry("alarms.refuses"),
        "endless": {"task": "alarms.slow", "schedule": 6.0, "options": {"neli_max_runtime": 5}},
    }
    fleet.worker("-P", pool, "-c", "8", name="worker1")
    beat = fleet.beat(name="beat1")
    settled(fleet, beat)
    for name, reason in (("unheard", "not_started"), ("refused", "refused")):
        found = wait_alarm(fleet, entry=name)
        assert (found["alarm"], found["reason"]) == ("slot_overdue", reason)
    assert "not today" in alarms(fleet, entry="refused")[0]["error"]
    found = wait_alarm(fleet, alarm="run_overdue")
    assert (found["entry"], found["allowance"]) == ("endless", 5)
    assert found["worker"].startswith("worker1@")
    assert alarms(fleet, entry="fine") == []
    assert_once_and_in_time(fleet)
    assert {each["by"] for each in alarms(fleet)} == {"worker1"}, "the beat that leads does not watch"


def test_an_alarm_is_raised_while_the_task_broker_is_down(fleet: Members, redis_server: Any) -> None:
    beats = [fleet.beat(name=f"beat{number}") for number in (1, 2)]
    wait_until(lambda: any("leadership acquired role=leader" in each.log for each in beats), timeout=60, what="one")
    time.sleep(6)
    redis_server.stop()
    try:
        found = wait_alarm(fleet, entry="tick")
    finally:
        redis_server.start()
    assert found["reason"] in ("failed", "not_sent")
    assert_once_and_in_time(fleet)


def test_a_beat_that_leads_watches_only_as_long_as_nobody_else_can(fleet: Members) -> None:
    """What it does not send, it must tell itself; a worker that starts takes over, and tells nothing twice."""
    fleet.settings["beat_schedule"] = {"refused": entry("alarms.refuses")}
    fleet.beat(name="beat1")
    wait_alarm(fleet, by="beat1", entry="refused")
    fleet.worker("-P", "solo", name="worker1")
    wait_alarm(fleet, by="worker1", entry="refused")
    count = len(alarms(fleet))
    wait_until(lambda: len(alarms(fleet)) >= count + 2, timeout=20, what="further alarms")
    assert_each_slot_once(fleet)
    authors = [each["by"] for each in alarms(fleet)]
    assert authors == sorted(authors), "the beat says no more"


def test_when_the_watcher_is_killed_the_next_one_tells_each_further_slot_once(fleet: Members) -> None:
    fleet.settings["beat_schedule"] = {"refused": entry("alarms.refuses")}
    fleet.beat(name="beat1")
    workers = [fleet.worker("-P", "solo", name=f"worker{number}") for number in (1, 2)]
    first = wait_until(
        lambda: next((each for each in workers if alarms(fleet, by=each.name)), None), timeout=60, what="an alarm"
    )
    other = next(each for each in workers if each is not first)
    count = len(alarms(fleet))
    wait_until(lambda: len(alarms(fleet)) > count, timeout=20, what="a further alarm")
    time.sleep(1)  # what was told is noted by now
    first.signal(signal.SIGKILL)
    wait_until(lambda: len(alarms(fleet, by=other.name)) >= 3, timeout=40, what="alarms of the other")
    assert_each_slot_once(fleet)
    late = [each["at"] - each["deadline"] for each in alarms(fleet, by=other.name)]
    assert all(0 <= each <= LATE for each in late), late


def test_without_alarms_no_process_watches(fleet: Members) -> None:
    fleet.settings.update(neli_alarms=False, beat_schedule={"refused": entry("alarms.refuses")})
    beat = fleet.beat(name="beat1")
    wait_until(lambda: beat.log.count("ValueError") >= 6, timeout=60, what="refused slots, the first of them overdue")
    assert alarms(fleet) == []
