"""What is refused before a beat takes part: nobody finds out at three in the morning."""

from __future__ import annotations

from datetime import timedelta

import pytest

from celery_neli import ReplicatedScheduler, Scheduler
from celery_neli.exceptions import ConfigurationError
from tests.unit.fakes import FakeLeadership, FakeTopic
from tests.unit.schedulers import make_app

EVERY_MINUTE = {"task": "t", "schedule": timedelta(minutes=1)}


def test_our_scheduler_by_itself_is_refused_where_there_is_an_election() -> None:
    """Each of several beats would send, and nothing would tell."""
    app = make_app(neli_group="shop")
    for lazy in (False, True):  # also the banner's, with which `celery beat` ends in one line
        with pytest.raises(ConfigurationError, match=r"set beat_scheduler = 'celery_neli\.Scheduler'"):
            ReplicatedScheduler(app, lazy=lazy)
    app.conf.neli_enabled = False
    ReplicatedScheduler(app)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"neli_misfre": "skip"}, "there is no option neli_misfre; did you mean neli_misfire?"),
        ({"neli_misfire": "skp"}, "neli_misfire = 'skp': give one of"),
    ],
)
def test_an_option_that_is_wrong_is_refused(
    options: dict[str, str], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As the runtime schedule does; the other entries run."""
    app = make_app(beat_schedule={"tidy": {**EVERY_MINUTE, "options": options}, "good": EVERY_MINUTE})
    assert list(ReplicatedScheduler(app).schedule) == ["good"]
    (line,) = caplog.messages
    assert line.startswith("beat_schedule: entry=tidy is left out: ")
    assert says in line


def test_a_schedule_that_cannot_be_built_ends_a_beat_before_it_takes_part() -> None:
    """It would be elected, fail and hand over, again and again."""
    leader, topic = FakeLeadership(), FakeTopic()
    made = type("Made", (Scheduler,), {"topic_factory": staticmethod(lambda *_: topic)})
    scheduler = made(
        make_app(neli_group="shop", neli_scheduler="celery_neli.ReplicatedScheduler", neli_misfire="fireonce"),
        leadership=leader,
    )
    with pytest.raises(ConfigurationError, match="neli_misfire = 'fireonce'"):
        scheduler.tick()
    assert not leader.started
    scheduler.close()
