"""A pause of all entries through the end of the beat that led when it was made."""

from __future__ import annotations

import json
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.processes import wait_until
from tests.smoke.test_history import runs

if TYPE_CHECKING:
    from celery_neli.history.runs import Run
    from tests.smoke.members import Members

pytestmark = [pytest.mark.smoke, pytest.mark.slow]

READ_WITHIN = 2.0  # seconds in which a leader has read that a pause was made


def test_no_slot_of_a_pause_runs_and_the_first_after_it_does_though_the_leader_was_killed(on_node: Members) -> None:
    """The successor knows from the record and its clock when the pause ends; each later slot is sent once."""
    on_node.settings["beat_schedule"] = {"tick": {"task": "smoke.tick", "schedule": 1.0, "options": {"expires": 5}}}
    on_node.beat()
    on_node.beat()
    leader = on_node.wait_leader()
    wait_until(lambda: runs(on_node), timeout=30, what="a first run", interval=0.2)
    made = on_node.run("neli", "schedule", "pause", "--all", "--until", "10s", "--note", "we deploy")
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("paused: all entries until ")
    (pause,) = json.loads(on_node.run("neli", "schedule", "pauses", "--json").stdout)
    wait_until(lambda: "schedule: paused all entries" in leader.log, timeout=5, what="the leader's line")
    assert "  paused: all entries until " in on_node.run("neli", "status").stdout
    leader.signal(signal.SIGKILL)
    assert time.time() < pause["until"] - 1, "the leader was to be killed during the pause"
    on_node.wait_leader(but=leader)
    wait_until(lambda: time.time() > pause["until"] + 5, timeout=30, what="some seconds after the pause")

    def after() -> list[Run]:
        found = [each for each in runs(on_node, limit=1000) if each.slot and each.slot > pause["until"]]
        return sorted(found, key=lambda each: each.slot or 0.0)

    wait_until(lambda: len(after()) > 2, timeout=20, what="runs after the pause")
    during = [each.slot for each in runs(on_node, limit=1000) if each.slot and each.slot <= pause["until"]]
    assert [each for each in during if each > pause["at"] + READ_WITHIN] == []
    first = after()[0]
    assert first.slot == pytest.approx(pause["until"] + 1, abs=0.01)
    assert {(each.outcome, each.in_doubt, each.attempts) for each in after()} == {("sent", "", 1)}
