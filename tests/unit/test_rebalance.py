"""When a member asks for a role that the group has assigned to it and another leads (R10)."""

from __future__ import annotations

import pytest

from celery_neli.config import Config
from celery_neli.election.lease import FOREVER, Lease
from celery_neli.election.records import Record
from celery_neli.election.role_state import PATIENCE, Rebalance

TIMING = Config(group="test", heartbeat_interval=0.5, heartbeat_timeout=4.0, takeover_delay=0.1, drain_timeout=10.0)
AFTER = 30.0


@pytest.fixture
def lease() -> Lease:
    """Of a member to which the group has assigned the role, while `other` leads it in term 0."""
    lease = Lease("me/1", TIMING)
    lease.begin(0, 0.0, oldest=True)
    lease.read(0, Record(kind="claim", member="other/1", seq=1, lease=4.0, seen=-1), 0.0)
    lease.end()
    lease.induced = True
    return lease


def asked(rebalance: Rebalance, lease: Lease, begin: float, end: float) -> list[float]:
    """At which of the half seconds from `begin` to `end` it asks."""
    times = [begin + number / 2 for number in range(round(2 * (end - begin)) + 1)]
    return [now for now in times if rebalance.request(lease, now, awake=True) is not None]


def test_it_asks_when_nothing_has_changed_for_so_long_and_again_after_as_long(lease: Lease) -> None:
    """A request may be lost, and a holder may be slow to hand over."""
    assert asked(Rebalance(AFTER), lease, 100.0, 195.0) == [130.0, 160.0, 190.0]


def test_the_request_is_about_the_term_and_in_its_own_favour(lease: Lease) -> None:
    """Whoever leads later, or has the same name, is not meant."""
    rebalance = Rebalance(AFTER)
    rebalance.request(lease, 0.0, awake=True)
    record = rebalance.request(lease, AFTER, awake=True)
    assert record is not None
    assert (record.kind, record.member, record.to, record.term) == ("request", "me/1", "me/1", 0)


def test_a_new_term_is_given_as_long(lease: Lease) -> None:
    """An operator who made another member lead is not contradicted at once."""
    rebalance = Rebalance(AFTER)
    assert asked(rebalance, lease, 0.0, 29.5) == []
    lease.read(1, Record(kind="claim", member="third/1", seq=1, lease=4.0, seen=0), 29.5)
    assert asked(rebalance, lease, 30.0, 60.0) == [60.0]


@pytest.mark.parametrize("what", ["induced", "candidate", "caught_up"])
def test_a_member_to_which_that_applies_no_more_begins_to_wait_anew(lease: Lease, what: str) -> None:
    """The group moved the role to and fro, or the member was stalled, or has not read what there is."""
    rebalance = Rebalance(AFTER)
    assert asked(rebalance, lease, 0.0, 29.0) == []
    setattr(lease, what, False)
    assert asked(rebalance, lease, 29.5, 100.0) == []
    setattr(lease, what, True)
    assert asked(rebalance, lease, 100.5, 130.5) == [130.5]


def test_a_process_that_stood_still_begins_to_wait_anew(lease: Lease) -> None:
    """What it knows of the group is of before, and its clock went on."""
    rebalance = Rebalance(AFTER)
    assert rebalance.request(lease, 0.0, awake=True) is None
    assert rebalance.request(lease, 500.0, awake=False) is None
    assert asked(rebalance, lease, 500.5, 530.5) == [530.5]


def test_nobody_is_asked_for_what_is_free_or_ones_own(lease: Lease) -> None:
    """A vacant role is claimed; who leads has what it wants."""
    lease.read(1, Record(kind="release", member="other/1", seq=2, lease=4.0, seen=0, term=0), 1.0)
    assert asked(Rebalance(AFTER), lease, 1.0, 100.0) == []
    lease.tick(100.0)
    lease.read(2, Record(kind="claim", member="me/1", seq=1, lease=4.0, seen=1), 100.0)
    lease.end()
    assert lease.held(100.0)
    assert asked(Rebalance(AFTER), lease, 100.0, 200.0) == []


def test_it_may_be_off(lease: Lease) -> None:
    """With one role, a join must not move the leader."""
    assert asked(Rebalance(FOREVER), lease, 0.0, 1000.0) == []


def test_who_gives_a_role_up_soon_after_it_came_waits_longer_each_time_and_not_for_ever(lease: Lease) -> None:
    """It fails whenever it leads, and would take the role from a sound member again and again."""
    rebalance = Rebalance(AFTER)
    for wait in (60.0, 120.0, 240.0, 480.0, 480.0):
        rebalance.gave_up(5.0)
        assert asked(rebalance, lease, 0.0, wait) == [wait]
        lease.induced = False
        rebalance.request(lease, wait, awake=True)
        lease.induced = True
    assert PATIENCE * AFTER == 480.0
    rebalance.gave_up(1000.0)
    assert asked(rebalance, lease, 0.0, 30.0) == [30.0]
