"""`celery neli explain` with real beats, a real worker and a real Kafka."""

from __future__ import annotations

import json
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.processes import wait_until

if TYPE_CHECKING:
    from tests.smoke.members import Members

pytestmark = [pytest.mark.smoke, pytest.mark.slow]

SCHEDULE = {
    "tick": {"task": "smoke.tick", "schedule": 2.0},
    "once-fire": {"task": "smoke.tick", "schedule": 1.0, "options": {"neli_misfire": "fire_once"}},
}


def story(members: Members, *arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit status, and the story."""
    done = members.run("neli", "explain", *arguments, "--json")
    assert done.stdout.startswith("{"), done.stdout + done.stderr
    return done.returncode, json.loads(done.stdout)


def told(found: dict[str, Any]) -> str:
    """What happened, in a text."""
    return "\n".join(each["what"] for each in found["events"])


def test_explain_tells_what_became_of_slots(on_node: Members) -> None:
    """One that ran, one in a time without a leader, a pause, a time that is no slot, an entry that was removed."""
    on_node.settings["beat_schedule"] = SCHEDULE
    worker = on_node.worker("-P", "solo", name="w1")
    first = on_node.beat()
    wait_until(first.holds, timeout=60, what="a leader")

    def ran() -> dict[str, Any] | None:
        status, found = story(on_node, "tick")
        # The beat's own record of a slot comes a moment after the slot.
        return (
            found if status == 0 and found["verdict"] == "succeeded" and "had sent its message" in told(found) else None
        )

    found = wait_until(ran, timeout=60, interval=1.0, what="a slot whose task succeeded")
    assert found["verdict"] == "succeeded"
    assert "claimed the slot" in told(found)
    assert "had read its claim back" in told(found)
    assert "started its task smoke.tick" in told(found)
    assert "w1@" in found["summary"]

    # Without a leader for some seconds: the slot runs late, or another one in its place.
    first.signal(signal.SIGKILL)
    killed = time.time()
    time.sleep(5)
    second = on_node.beat()
    wait_until(second.holds, timeout=60, what="another leader")
    # The lease of the dead one ran until four seconds after it was killed at most.
    slot = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(killed + 5))

    def left_out() -> dict[str, Any] | None:
        status, found = story(on_node, "once-fire", slot)
        return found if (status, found["verdict"]) == (1, "misfire") else None

    found = wait_until(left_out, timeout=20, interval=0.5, what="a slot that the policy left out")
    assert "by the misfire policy: neli_misfire = 'fire_once'" in found["summary"]
    assert "no member led the role from" in found["summary"]
    assert "without a leader" in told(found)

    assert on_node.run("neli", "schedule", "pause", "tick", "--by", "ada").returncode == 0
    time.sleep(2.5)
    status, found = story(on_node, "tick")
    assert (status, found["verdict"]) == (1, "paused")
    assert "by ada" in found["summary"]

    put = on_node.run("neli", "schedule", "add", "nightly", "smoke.tick", "0 7 * * *")
    assert put.returncode == 0, put.stderr
    status, found = story(on_node, "nightly", "12:34")
    assert (status, found["verdict"]) == (1, "not a slot")
    status, found = story(on_node, "nightly", "07:00")
    assert (status, found["verdict"]) == (1, "made later")
    assert on_node.run("neli", "schedule", "add", "nightly", "smoke.tick", "2s").returncode == 0
    assert on_node.run("neli", "schedule", "remove", "nightly").returncode == 0
    time.sleep(2)
    status, found = story(on_node, "nightly")
    assert (status, found["verdict"]) == (1, "removed")

    assert on_node.run("neli", "explain", "tick", "yestermorning").returncode == 2
    unknown = on_node.run("neli", "explain", "tock")
    assert (unknown.returncode, "did you mean 'tick'?" in unknown.stderr) == (1, True)
    for each in (worker, second):
        each.signal(signal.SIGTERM)
        each.wait_end()
