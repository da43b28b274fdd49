"""Many messages before one wait: which of them arrived, whatever the broker answers."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from amqp import Channel
from amqp.exceptions import MessageNacked
from kombu import Connection
from kombu.messaging import Producer

from celery_neli.beat.replicated.publishers import batch_of

if TYPE_CHECKING:
    from collections.abc import Callable


class Amqp(Channel):
    """A channel whose broker answers as `answers` says, one answer for each look at the socket."""

    def __init__(self, *, confirms: bool = True) -> None:
        self.events = defaultdict(set)
        self.connection = SimpleNamespace(confirm_publish=confirms, drain_events=self.answer)
        self.sent: list[Any] = []
        self.selected = 0
        self.answers: list[Callable[[], Any]] = []
        self.refuse: BaseException | None = None

    def __del__(self) -> None: ...

    def confirm_select(self, nowait: bool = False) -> None:
        self.selected += 1

    def _basic_publish(self, message: Any, **kwargs: Any) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.sent.append(message)

    def answer(self) -> None:
        assert self.answers, "waits for ever"
        self.answers.pop(0)()

    def ack(self, tag: int, *, multiple: bool = False) -> Callable[[], Any]:
        return lambda: self._on_basic_ack(tag, multiple)

    def nack(self, tag: int, *, multiple: bool = False) -> Callable[[], Any]:
        return lambda: self._on_basic_nack(tag, multiple)


def never() -> None:
    raise AssertionError("all has left: nobody is to be asked")


def outcomes(channel: Any, messages: int) -> list[BaseException | None]:
    """What becomes of so many messages in one batch."""
    batch = channel.batch
    batch.begin()
    marks = [batch.mark]
    for n in range(messages):
        channel.basic_publish(n, exchange="")
        marks.append(batch.mark)
    batch.settle(never)
    return [batch.failure(marks[n], marks[n + 1]) for n in range(messages)]


@pytest.fixture
def channel() -> Amqp:
    """One that confirms."""
    channel = Amqp()
    channel.batch = batch_of(SimpleNamespace(channel=channel))
    return channel


def test_confirms_are_awaited_after_all_have_left(channel: Amqp) -> None:
    """One by one or many at a time, in any order; tags go on in the next batch."""
    channel.answers = [channel.ack(2), channel.ack(3, multiple=True)]
    assert outcomes(channel, 3) == [None, None, None]
    channel.answers = [channel.ack(5, multiple=True)]
    assert outcomes(channel, 2) == [None, None]
    assert channel.sent == [0, 1, 2, 0, 1]
    assert channel.selected == 1


def test_a_refused_message_fails_alone(channel: Amqp) -> None:
    """And only in its own batch."""
    channel.answers = [channel.ack(1), channel.nack(2), channel.ack(3)]
    first, second, third = outcomes(channel, 3)
    assert isinstance(second, MessageNacked)
    assert (first, third) == (None, None)
    channel.answers = [channel.nack(5, multiple=True)]
    assert all(isinstance(each, MessageNacked) for each in outcomes(channel, 2))
    channel.answers = [channel.ack(7, multiple=True)]
    assert outcomes(channel, 2) == [None, None]


def test_a_connection_that_ends_leaves_what_was_not_confirmed_unknown(channel: Amqp) -> None:
    """What was confirmed before is known to have arrived."""
    lost = ConnectionResetError("gone")

    def end() -> None:
        raise lost

    channel.answers = [channel.ack(1), end]
    assert outcomes(channel, 3) == [None, lost, lost]


def test_a_channel_that_was_closed_meanwhile_is_not_waited_for(channel: Amqp) -> None:
    """As kombu does when it connects anew to try again."""
    channel.answers = [lambda: setattr(channel, "connection", None)]
    assert [type(each).__name__ for each in outcomes(channel, 1)] == ["RecoverableConnectionError"]


def test_what_did_not_leave_is_not_waited_for(channel: Amqp) -> None:
    """Its error is told where it is published."""
    channel.batch.begin()
    channel.refuse = ValueError("no such header")
    with pytest.raises(ValueError, match="no such header"):
        channel.basic_publish("message")
    channel.batch.settle(never)
    assert channel.batch.failure(0, channel.batch.mark) is None


def test_without_confirms_each_message_is_sent_as_ever() -> None:
    """Nobody answers."""
    channel = Amqp(confirms=False)
    batch_of(SimpleNamespace(channel=channel)).settle(never)
    assert channel.selected == 0
    assert "basic_publish" not in vars(channel)


def test_a_transport_without_batches_sends_each_message_as_ever() -> None:
    """It is there at once."""
    with Connection("memory://") as connection:
        producer = Producer(connection, auto_declare=False)
        queue = connection.SimpleQueue("batch")
        batch = batch_of(producer)
        batch.begin()
        mark = batch.mark
        producer.publish({"n": 1}, routing_key="batch")
        assert queue.qsize() == 1
        batch.settle(never)
        assert batch.failure(mark, batch.mark) is None
        queue.close()
