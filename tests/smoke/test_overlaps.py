"""Overlap policies and pauses after failures, with real processes that are killed in between."""

from __future__ import annotations

import json
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.processes import wait_until
from tests.smoke.members import members

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.smoke.members import Members, Process

pytestmark = [pytest.mark.smoke, pytest.mark.slow]

ACQUIRED = "leadership acquired role=leader"


@pytest.fixture
def fleet(tmp_path: Path, names: Callable[[str], str], redis_url: str, kafka: str) -> Iterator[Members]:
    """A fleet without members."""
    settings = {
        "neli_group": names("g"), "neli_kafka": kafka, "broker_url": redis_url, "result_backend": redis_url,
        "broker_connection_retry_on_startup": True, "task_default_queue": names("q"), "timezone": "UTC",
    }  # fmt: skip
    with members(tmp_path, project="tests.smoke.overlap_project", **settings) as started:
        yield started


def tasks(fleet: Members, event: str) -> list[dict[str, Any]]:
    """What tasks have done so far."""
    path = fleet.directory / "tasks"
    lines = path.read_text().splitlines() if path.exists() else []
    return [each for each in map(json.loads, lines) if each["event"] == event]


def wait_began(fleet: Members, count: int, *, timeout: float = 60.0) -> list[dict[str, Any]]:
    return wait_until(
        lambda: len(found := tasks(fleet, "began")) >= count and found,
        timeout=timeout, what=f"{count} tasks, see {fleet.directory}", interval=0.02,
    )  # fmt: skip


def wait_logged(members: list[Process], text: str, *, timeout: float = 60.0) -> Process:
    return wait_until(
        lambda: next((each for each in members if text in each.log), None), timeout=timeout, what=f"{text!r} in a log"
    )


def test_a_slot_that_waits_runs_once_although_its_leader_was_killed(fleet: Members) -> None:
    """`neli_in_doubt = "skip"` would leave out what is in doubt: it is known that the slot was not sent."""
    options = {"neli_overlap": "queue_one"}
    fleet.settings.update(
        neli_in_doubt="skip",
        beat_schedule={"import": {"task": "overlaps.held", "schedule": 3.0, "options": options}},
    )
    fleet.worker("-P", "threads", "-c", "4", name="worker1")
    beats = [fleet.beat(name=f"beat{number}") for number in (1, 2)]
    (first,) = wait_began(fleet, 1)
    leader = wait_logged(beats, "slot waits entry=import")
    time.sleep(1)  # Kafka has its state by now
    leader.signal(signal.SIGKILL)
    other = next(each for each in beats if each is not leader)
    wait_logged([other], "slot waits entry=import")
    time.sleep(4)  # a further slot is due, and waits in its place
    assert tasks(fleet, "began") == [first]
    (fleet.directory / f"release-{first['id']}").touch()
    _, second = wait_began(fleet, 2, timeout=5)
    (ended,) = tasks(fleet, "ended")
    assert second["at"] - ended["at"] < 1.5
    assert second["id"] != first["id"]
    time.sleep(4)
    assert len(tasks(fleet, "began")) == 2, "one run for all that waited; the next one waits for it"
    assert "slots in doubt" not in other.log
    print(f"ran {second['at'] - ended['at']:.2f} s after the end of the last task")
    (fleet.directory / f"release-{second['id']}").touch()  # or the worker's thread would go on
    for each in wait_began(fleet, 3, timeout=5):
        (fleet.directory / f"release-{each['id']}").touch()


def test_a_task_that_is_unfinished_when_the_next_slot_is_due_is_terminated(fleet: Members) -> None:
    """In a prefork pool; the new one runs, and is terminated by the next one in turn."""
    options = {"neli_overlap": "cancel_other"}
    fleet.settings["beat_schedule"] = {"import": {"task": "overlaps.held", "schedule": 5.0, "options": options}}
    worker = fleet.worker("-P", "prefork", "-c", "2", name="worker1")
    beat = fleet.beat(name="beat1")
    began = wait_began(fleet, 3)
    assert tasks(fleet, "ended") == []
    assert [each["id"] for each in began] == list(dict.fromkeys(each["id"] for each in began))
    for each in began[:2]:
        wait_logged([beat], f"beat: revoking entry=import id={each['id']}")
        wait_logged([worker], f"Terminating {each['id']} (", timeout=10)
    late = [later["at"] - float(_seconds(later["slot"])) for later in began[1:]]
    assert all(each < 2.0 for each in late), late
    assert "not revoked" not in beat.log
    print(f"the new ones began {', '.join(f'{each:.2f}' for each in late)} s after their slots")


def _seconds(slot: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(slot).timestamp()


def test_an_entry_is_paused_after_three_failures_and_again_after_three_more(fleet: Members) -> None:
    """The watcher is killed in between, and its successor counts on. Those before the entry was resumed count no more.
    Alarms are off: the entry wants to be watched.
    """
    options = {"neli_pause_on_failure": 3}
    fleet.settings.update(
        neli_alarms=False,
        beat_schedule={"import": {"task": "overlaps.fails", "schedule": 4.0, "options": options}},
    )
    workers = [fleet.worker("-P", "solo", name=f"worker{number}") for number in (1, 2)]
    everybody = [*workers, *(fleet.beat(name=f"beat{number}") for number in (1, 2))]
    wait_began(fleet, 3)
    failed = tasks(fleet, "began")[2]["at"]
    watcher = wait_logged(everybody, "entry paused entry=import failures=3", timeout=30)
    print(f"paused {time.time() - failed:.1f} s after the third failure")
    time.sleep(6)
    count = len(tasks(fleet, "began"))
    assert count == 3
    found = entry_of(fleet)
    assert found["paused"]
    assert found["changes"][-1]["by"] == "neli_pause_on_failure"
    assert fleet.run("neli", "schedule", "resume", "import").returncode == 0
    wait_began(fleet, count + 2)
    time.sleep(1)
    assert not entry_of(fleet)["paused"], "the three before do not count"
    watcher.signal(signal.SIGKILL)
    killed = time.time()
    left = [each for each in everybody if each is not watcher]
    wait_logged(left, "entry paused entry=import failures=", timeout=40)
    print(f"paused {time.time() - killed:.1f} s after the watcher was killed")
    assert entry_of(fleet)["paused"]
    assert sum(each.log.count("entry paused entry=") for each in everybody) == 2


def entry_of(fleet: Members) -> dict[str, Any]:
    told = fleet.run("neli", "schedule", "show", "import", "--json")
    assert told.returncode == 0, told.stderr
    found: dict[str, Any] = json.loads(told.stdout)
    return found
