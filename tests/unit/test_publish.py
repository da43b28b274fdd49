"""The last step before the wire: the lease is asked for every attempt, and the headers name term and slot."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from uuid import uuid5

import kombu
import pytest
from celery.beat import ScheduleEntry
from celery.schedules import crontab, schedule
from kombu.transport.memory import Channel, Transport

from celery_neli.beat.publish import due_slot, leased_producer
from celery_neli.beat.tenure import LeaseEnded, Tenure, Wakeup
from celery_neli.schedule.slots import NAMESPACE, slot_id
from tests.unit.fakes import FakeLeadership
from tests.unit.schedulers import make_app

if TYPE_CHECKING:
    from collections.abc import Callable


class WatchedChannel(Channel):
    """A channel that does as it is told with each message."""

    script: list[Callable[[], None]]
    wire: list[Any]
    declare: Callable[[], None]

    def basic_publish(self, message: Any, *args: Any, **kwargs: Any) -> None:
        if type(self).script:
            type(self).script.pop(0)()
        type(self).wire.append(message)

    def queue_declare(self, *args: Any, **kwargs: Any) -> Any:
        type(self).declare()
        return super().queue_declare(*args, **kwargs)


@pytest.fixture
def leadership() -> FakeLeadership:
    leadership = FakeLeadership()
    leadership.grant(3).join()
    return leadership


@pytest.fixture
def channel_class() -> type[WatchedChannel]:
    return type("WatchedChannel", (WatchedChannel,), {"script": [], "wire": [], "declare": staticmethod(lambda: None)})


@pytest.fixture
def connection(channel_class: type[WatchedChannel]) -> Any:
    transport = type(
        "WatchedTransport",
        (Transport,),
        {
            "Channel": channel_class,
            "recoverable_connection_errors": (ConnectionError,),
            "connection_errors": (ConnectionError,),
        },
    )
    with kombu.Connection(transport=transport) as connection:
        yield connection


@pytest.fixture
def producer(leadership: FakeLeadership, connection: Any) -> Any:
    tenure = Tenure(leadership.role("leader"), 3, wakeup=Wakeup(["leader"]), progress=leadership.progress)
    return leased_producer(kombu.Producer, tenure)(connection, auto_declare=False)


def test_a_message_leaves_while_the_lease_holds(producer: Any, channel_class: type[WatchedChannel]) -> None:
    producer.publish({}, routing_key="q")
    assert len(channel_class.wire) == 1


def test_a_message_in_flight_may_leave_while_a_hand_over_drains(
    producer: Any, leadership: FakeLeadership, channel_class: type[WatchedChannel]
) -> None:
    leadership.drain()
    producer.publish({}, routing_key="q")
    assert len(channel_class.wire) == 1


@pytest.mark.parametrize(
    "change", [lambda leadership: leadership.lapse(), lambda leadership: leadership.grant(4).join()]
)
def test_no_message_leaves_without_the_lease_of_its_own_term(
    producer: Any,
    leadership: FakeLeadership,
    channel_class: type[WatchedChannel],
    change: Callable[[FakeLeadership], None],
) -> None:
    change(leadership)
    with pytest.raises(LeaseEnded):
        producer.publish({}, routing_key="q", retry=True)
    assert channel_class.wire == []


def test_each_retry_below_publish_asks_again(
    producer: Any, leadership: FakeLeadership, channel_class: type[WatchedChannel]
) -> None:
    """The last step is retried by kombu itself, for as long as its policy says."""

    def broker_blinks() -> None:
        leadership.lapse()
        raise ConnectionError

    channel_class.script.append(broker_blinks)
    with pytest.raises(LeaseEnded):
        producer.publish({}, routing_key="q", retry=True, retry_policy={"max_retries": 3, "interval_start": 0})
    assert channel_class.wire == []


def test_the_lease_is_asked_after_the_queue_was_declared(
    producer: Any, leadership: FakeLeadership, channel_class: type[WatchedChannel]
) -> None:
    """Declaring is a round trip to the task broker, and may take as long as it likes."""
    channel_class.declare = staticmethod(leadership.lapse)  # type: ignore[assignment]
    with pytest.raises(LeaseEnded):
        producer.publish({}, routing_key="q", declare=[kombu.Queue("q", channel=producer.channel)])
    assert channel_class.wire == []


class Asked(kombu.Producer):  # type: ignore[misc]
    """Counts how often kombu is asked to declare something, with all that it does to be able to try again."""

    asked = 0

    def maybe_declare(self, *args: Any, **kwargs: Any) -> Any:
        self.asked += 1
        return super().maybe_declare(*args, **kwargs)


def test_a_queue_is_declared_once_for_each_connection(
    leadership: FakeLeadership, channel_class: type[WatchedChannel], connection: Any
) -> None:
    """The broker may have lost it with the connection: also in the retry of the message that noticed."""
    declared: list[int] = []
    channel_class.declare = staticmethod(lambda: declared.append(len(channel_class.wire)))  # type: ignore[assignment]
    tenure = Tenure(leadership.role("leader"), 3, wakeup=Wakeup(["leader"]), progress=leadership.progress)
    producer = leased_producer(Asked, tenure)(connection, auto_declare=False)

    def publish() -> None:
        producer.publish({}, routing_key="q", declare=[kombu.Queue("q")], retry=True)

    def lose() -> None:
        raise ConnectionError

    for _ in range(3):
        publish()
    assert (declared, producer.asked) == ([0], 1)
    channel_class.script.append(lose)
    for _ in range(3):
        publish()
    assert (declared, producer.asked) == ([0, 3], 2)
    connection.collect()
    connection.ensure_connection()
    producer.revive(connection.default_channel)
    for _ in range(3):
        publish()
    assert (declared, producer.asked) == ([0, 3, 6], 3)


def test_queues_that_go_by_themselves_are_declared_with_each_message(
    producer: Any, channel_class: type[WatchedChannel]
) -> None:
    """The broker deletes them when nobody reads them; each of several queues is its own."""
    declared: list[int] = []
    channel_class.declare = staticmethod(lambda: declared.append(len(channel_class.wire)))  # type: ignore[assignment]
    for _ in range(2):
        producer.publish({}, routing_key="q", declare=[kombu.Queue("q", auto_delete=True)])
    producer.publish({}, routing_key="r", declare=[kombu.Queue("r")])
    assert declared == [0, 1, 2]


@pytest.mark.parametrize("entry", ["tidy", "täglich \u2603", "a\nb", ""])
def test_the_id_of_a_slot_is_a_uuid_of_version_5(entry: str) -> None:
    """The one that RFC 9562 says, so that others can reckon it, too."""
    slot = "2026-03-01T12:00:00+00:00"
    assert slot_id("shop.beat", entry, slot) == str(uuid5(NAMESPACE, f"shop.beat\n{entry}\n{slot}"))


def test_a_name_that_is_no_text_has_an_id() -> None:
    """Celery takes any str for an entry's name."""
    assert slot_id("shop.beat", "\udcff", "x") != slot_id("shop.beat", "\udcfe", "x")


def test_nothing_waits_in_a_batch(leadership: FakeLeadership) -> None:
    """Messages that kombu 5.7 held back would leave without the lease being asked."""

    class WithBatches:
        def batch(self, max_size: int) -> int:
            return max_size

    tenure = Tenure(leadership.role("leader"), 3, wakeup=Wakeup(["leader"]), progress=leadership.progress)
    assert leased_producer(WithBatches, tenure)().batch(max_size=500) == 1


MORNING = datetime(2026, 3, 1, 6, 30, 17, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("when", "slot"),
    [
        (schedule(timedelta(seconds=90)), MORNING + timedelta(seconds=90)),
        (crontab(minute="*/15"), datetime(2026, 3, 1, 6, 45, tzinfo=timezone.utc)),
        (crontab(hour="4", minute="0"), datetime(2026, 3, 2, 4, 0, tzinfo=timezone.utc)),
    ],
)
def test_a_slot_is_the_first_due_time_after_the_last_run(when: Any, slot: datetime) -> None:
    """However late it is sent: so a slot has one name in every process."""
    app = make_app()
    when.app = app
    assert due_slot(ScheduleEntry("e", "t", MORNING, schedule=when, app=app)) == slot


def test_a_slot_is_reckoned_in_the_schedules_time_zone() -> None:
    """Four o'clock in Berlin is three in UTC, in winter."""
    app = make_app(timezone="Europe/Berlin")
    entry = ScheduleEntry("e", "t", MORNING, schedule=crontab(hour="4", minute="0", app=app), app=app)
    assert due_slot(entry) == datetime(2026, 3, 2, 3, 0, tzinfo=timezone.utc)


@pytest.mark.parametrize("error", [TypeError, RuntimeError("a calendar that is down")])
def test_a_schedule_that_cannot_tell_has_the_present_as_its_slot(error: Any) -> None:
    class Odd(schedule):
        def remaining_estimate(self, last_run_at: Any) -> Any:
            raise error

    app = make_app()
    before = datetime.now(timezone.utc)
    assert (
        before
        <= due_slot(ScheduleEntry("e", "t", MORNING, schedule=Odd(5, app=app), app=app))
        <= datetime.now(timezone.utc)
    )
