"""Entries that come and go while leaders are killed: what the command line has said stays said."""

from __future__ import annotations

import signal
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from tests.failover.rig import PERIODS, now
from tests.failover.strikes import sigkill
from tests.processes import wait_until

if TYPE_CHECKING:
    from datetime import datetime

    from tests.failover.conftest import Rigs
    from tests.failover.judge import Message
    from tests.failover.rig import Rig

pytestmark = [pytest.mark.smoke, pytest.mark.slow]
SECOND = timedelta(seconds=1)


def schedule(rig: Rig, *arguments: str) -> datetime:
    """Run `celery neli schedule ARGUMENTS`; when it had ended."""
    told = rig.members.run("neli", "schedule", *arguments)
    assert told.returncode == 0, told.stdout + told.stderr
    return now()


def sent(rig: Rig, entry: str) -> list[Message]:
    """The messages of one entry so far."""
    return [each for each in rig.reader.messages if each.entry == entry]


def wait_sent(rig: Rig, entry: str, *, since: datetime) -> None:
    """Wait until an entry was sent for a slot later than that."""
    what = f"{entry} for a slot after {since}, see {rig.members.directory}"
    wait_until(lambda: any(each.slot > since for each in sent(rig, entry)), timeout=60, what=what)


def test_entries_survive_the_leader_that_was_told_of_them_and_the_lack_of_one(rigs: Rigs) -> None:
    """One is added under a leader that is killed then, one while nobody leads; each has all its slots from its first
    second on. What is removed while nobody leads is not sent by the next leader.
    """
    with rigs("redis") as rig:
        rig.top_up()
        leader = rig.members.wait_leader()
        rig.wait_flow()
        before = schedule(rig, "add", "before", "smoke.tick", "PT1S")
        leader.signal(signal.SIGKILL)
        meanwhile = schedule(rig, "add", "meanwhile", "smoke.tick", "PT1S")
        rig.members.wait_leader(but=leader)
        for entry in ("before", "meanwhile"):
            wait_sent(rig, entry, since=now())
        sigkill(rig, rig.members.wait_leader())
        for entry in ("before", "meanwhile"):
            wait_sent(rig, entry, since=now())
        rig.top_up()
        rig.members.wait_leader().signal(signal.SIGKILL)
        removed = schedule(rig, "remove", "meanwhile")
        wait_sent(rig, "before", since=removed + 3 * SECOND)
        rig.wait_flow()
        verdict = rig.verdict({**PERIODS, "before": SECOND, "meanwhile": SECOND})
        assert not verdict.faults, verdict.story
        for entry, added in (("before", before), ("meanwhile", meanwhile)):
            assert min(each.slot for each in sent(rig, entry)) <= added + SECOND
        assert max(each.slot for each in sent(rig, "meanwhile")) <= removed
