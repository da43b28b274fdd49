"""Which of the missed slots run is a pure decision, and whatever does not run is counted."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery
from celery.beat import ScheduleEntry
from celery.schedules import schedule
from hypothesis import given
from hypothesis import strategies as st

from celery_neli.exceptions import ConfigurationError
from celery_neli.schedule.due import look
from celery_neli.schedule.policies import Misfire, decide
from celery_neli.schedule.slots import Owed
from celery_neli.settings import MISFIRE_POLICIES

NOON = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)


def owed(*seconds_late: float, total: int | None = None) -> Owed:
    """Slots that are this late at noon, oldest first."""
    slots = tuple(NOON - timedelta(seconds=late) for late in seconds_late)
    return Owed(
        newest=slots, first=slots[0], total=total or len(slots), exact=True, upcoming=NOON + timedelta(seconds=1)
    )


def runs(rule: Misfire, slots: Owed, **options: Any) -> tuple[list[float], int]:
    """How late the slots are that run, and how many are left out."""
    run, left_out = decide(rule, slots, NOON, **options)
    return [(NOON - slot).total_seconds() for slot in run], left_out


@pytest.mark.parametrize(
    ("rule", "late", "left_out"),
    [
        (Misfire(), [10.0], 3),
        (Misfire(grace=5.0), [], 4),
        (Misfire(grace=10.0), [10.0], 3),
        (Misfire(policy="fire_all"), [3000.0, 300.0, 30.0, 10.0], 0),
        (Misfire(policy="fire_all", most=2), [30.0, 10.0], 2),
        (Misfire(policy="fire_all", grace=60), [30.0, 10.0], 2),
        (Misfire(policy="skip"), [10.0], 3),
        (Misfire(policy="skip", grace=5.0), [], 4),
    ],
)
def test_each_policy(rule: Misfire, late: list[float], left_out: int) -> None:
    """Once: the newest. All: oldest first, of too many the newest. Skip: what is not later than its grace."""
    assert runs(rule, owed(3000.0, 300.0, 30.0, 10.0)) == (late, left_out)


@pytest.mark.parametrize("policy", MISFIRE_POLICIES)
def test_what_is_on_time_runs_whatever_the_policy(policy: str) -> None:
    """One slot, a moment ago."""
    assert runs(Misfire(policy=policy), owed(0.02)) == ([0.02], 0)


def test_skip_has_a_grace_of_a_minute_if_none_is_set() -> None:
    """A slot that a failover delayed is not skipped; one of this morning is."""
    assert runs(Misfire(policy="skip"), owed(59.0)) == ([59.0], 0)
    assert runs(Misfire(policy="skip"), owed(61.0)) == ([], 1)


def test_the_deadline_goes_first() -> None:
    """`beat_cron_starting_deadline`: what is older never runs, whatever the policy says."""
    assert runs(Misfire(), owed(40.0), deadline=30) == ([], 1)
    assert runs(Misfire(policy="fire_all"), owed(60.0, 30.0, 10.0), deadline=30) == ([30.0, 10.0], 1)
    assert runs(Misfire(policy="fire_all", grace=20.0), owed(60.0, 30.0, 10.0), deadline=30) == ([10.0], 2)


def test_slots_that_are_known_by_number_only_are_left_out() -> None:
    """After a long standstill only the newest slots are known by their times."""
    assert runs(Misfire(policy="fire_all", most=2), owed(20.0, 10.0, total=5000)) == ([20.0, 10.0], 4998)


@given(
    policy=st.sampled_from(MISFIRE_POLICIES),
    most=st.integers(1, 5),
    grace=st.none() | st.floats(0.1, 100),
    deadline=st.none() | st.floats(0.1, 100),
    lates=st.lists(st.integers(0, 200), min_size=1, max_size=8, unique=True),
)
def test_every_slot_runs_or_is_counted(
    policy: str, most: int, grace: float | None, deadline: float | None, lates: list[int]
) -> None:
    """In order, none twice, none past its bounds; and running them one by one comes to the same."""
    slots = owed(*sorted(lates, reverse=True))
    rule = Misfire(policy=policy, most=most, grace=grace)
    run, left_out = decide(rule, slots, NOON, deadline=deadline)
    assert run == sorted(set(run))
    assert set(run) <= set(slots.newest)
    assert left_out == len(lates) - len(run)
    assert len(run) <= rule.limit
    for slot in run:
        late = (NOON - slot).total_seconds()
        assert grace is None or late <= grace
        assert deadline is None or late <= deadline
    if len(run) > 1:
        rest = slots.newest[slots.newest.index(run[0]) + 1 :]
        later = decide(rule, slots._replace(newest=rest, total=len(rest)), NOON, deadline=deadline)
        assert later == (run[1:], 0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"neli_misfire": "once"}, "neli_misfire = 'once': give one of fire_once, fire_all, skip"),
        ({"neli_misfire_max": 0}, "neli_misfire_max = 0: give a whole number from 1 to 100000"),
        ({"neli_misfire_max": True}, "neli_misfire_max = True"),
        ({"neli_misfire_grace": 0}, "neli_misfire_grace = 0: give a number of seconds above 0, or None"),
        ({"neli_misfire_grace": "1 h"}, "neli_misfire_grace = '1 h'"),
        ({"neli_misfire_grace": float("nan")}, "neli_misfire_grace = nan"),
    ],
)
def test_what_makes_no_policy_is_refused_with_its_name_and_value(given: dict[str, Any], said: str) -> None:
    """In settings and in the options of an entry alike."""
    with pytest.raises(ConfigurationError) as raised:
        Misfire().changed_by(given)
    assert said in str(raised.value)
    with pytest.raises(ConfigurationError):
        Misfire().changed_by(given)


def test_an_entry_changes_what_it_names_and_keeps_the_rest() -> None:
    """Its options go before the settings."""
    default = Misfire().changed_by({"neli_misfire": "skip", "neli_misfire_grace": 7, "neli_misfire_max": None})
    assert default == Misfire(policy="skip", grace=7)
    assert default.changed_by({"queue": "q", "neli_misfire": "fire_all"}) == Misfire(policy="fire_all", grace=7)
    assert default.changed_by({"queue": "q"}) == default


@pytest.mark.parametrize(
    ("rule", "slot", "last"),
    [(Misfire(), 0, 1), (Misfire(policy="fire_all", most=2), 1, 2), (Misfire(grace=0.5), None, 0)],
)
def test_the_last_slot_that_is_left_out_is_known(rule: Misfire, slot: int | None, last: int) -> None:
    """The history names it: the slots from the first one to it did not run. Given in hours before noon."""
    app = Celery(set_as_current=False)
    entry = ScheduleEntry(
        name="e",
        task="t",
        app=app,
        schedule=schedule(timedelta(hours=1), app=app),
        last_run_at=NOON - timedelta(hours=6),
    )
    found = look(entry, NOON + timedelta(seconds=1), rule)
    assert found is not None
    assert found.slot == (None if slot is None else NOON - timedelta(hours=slot))
    assert found.last_left_out == NOON - timedelta(hours=last)
