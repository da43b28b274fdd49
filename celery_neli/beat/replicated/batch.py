"""Many messages before one wait: what a publisher sends on its connection before it asks what became of them.

How, the transport decides:

- AMQP with publisher confirms: messages leave at once, and the broker's confirms are awaited together;
- Redis, with kombu 5.7 or newer: kombu's publish batch, which sends all commands in one pipeline;
- all others: each message waits for itself, as ever.

A batch belongs to the thread of its producer. Source: py-amqp's `Channel.basic_publish_confirm`, kombu's
`Producer.batch`.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

from amqp import Channel as AmqpChannel
from amqp.exceptions import MessageNacked, RecoverableConnectionError
from kombu.messaging import Producer

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Batch", "batch_of"]

#: Commands after which kombu would send by itself; a publisher takes far fewer jobs at a time.
_MOST = 10_000
_batch_of_kombus: Any = getattr(Producer, "batch", None)


class Batch(Protocol):
    """Messages that are published through one producer between `begin` and `settle`, again and again."""

    def begin(self) -> None:
        """From now on, no message is waited for."""

    def mark(self) -> int:
        """A mark between two messages."""

    def settle(self, ask: Callable[[], None]) -> None:
        """Wait until the broker has answered for every message since `begin`. Never raises.

        ``ask`` is called before what is still here leaves, if anything is; if that raises, none of it leaves.
        """

    def failure(self, since: int, until: int) -> BaseException | None:
        """What went wrong with the messages between two marks, once they are settled; None: they arrived.

        After a failure the producer is not used again.
        """


def batch_of(producer: Any) -> Batch:
    """How this kombu producer, which is connected and was not used before, can send many. Blocks for an answer."""
    channel = producer.channel
    if isinstance(channel, AmqpChannel) and channel.connection.confirm_publish:
        return _Confirms(channel)
    if getattr(producer, "supports_batch_publish", False):
        return _Pipeline(producer)
    return _Single()


class _Single:
    """Each message waits for itself."""

    def begin(self) -> None:
        pass

    def mark(self) -> int:
        return 0

    def settle(self, ask: Callable[[], None]) -> None:
        pass

    def failure(self, since: int, until: int) -> BaseException | None:
        return None


class _Pipeline:
    """kombu's publish batch: nothing leaves before the end, and if that fails, nobody knows what arrived."""

    def __init__(self, producer: Any) -> None:
        self._producer = producer
        self._stack = ExitStack()
        self._failure: BaseException | None = None

    def begin(self) -> None:
        self._failure = None
        # Not the leased producer's own `batch`, which lets nothing wait: here the lease is asked once more.
        self._stack.enter_context(_batch_of_kombus(self._producer, max_size=_MOST))

    def mark(self) -> int:
        return 0

    def settle(self, ask: Callable[[], None]) -> None:
        try:
            with self._stack:
                ask()
        except BaseException as exc:  # noqa: BLE001 - LeaseEnded, or any of the transport's: `failure` tells
            self._failure = exc

    def failure(self, since: int, until: int) -> BaseException | None:
        return self._failure


class _Confirms:
    """Publisher confirms of AMQP. Marks are the delivery tags of the channel: its messages, counted from 1."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._tag = 0
        self._unconfirmed: set[int] = set()
        self._failures: dict[int, BaseException] = {}
        channel.events["basic_ack"].add(self._confirmed)
        channel.events["basic_nack"].add(self._refused)
        channel.confirm_select()
        channel.basic_publish = self._publish  # as py-amqp does itself, for a publish that waits

    def begin(self) -> None:
        pass

    def mark(self) -> int:
        return self._tag

    def settle(self, ask: Callable[[], None]) -> None:
        try:
            while self._unconfirmed:
                connection = self._channel.connection
                if connection is None:
                    raise RecoverableConnectionError("the channel was closed before the broker confirmed")
                connection.drain_events()
        except BaseException as exc:  # noqa: BLE001 - any of the transport's: `failure` tells
            self._failures.update(dict.fromkeys(self._unconfirmed, exc))
            self._unconfirmed.clear()

    def failure(self, since: int, until: int) -> BaseException | None:
        found = (self._failures.get(tag) for tag in range(since + 1, until + 1))
        return next((each for each in found if each is not None), None)

    def _publish(self, message: Any, **kwargs: Any) -> Any:
        self._tag += 1
        self._unconfirmed.add(self._tag)
        try:
            return self._channel._basic_publish(message, **kwargs)
        except BaseException:
            self._unconfirmed.discard(self._tag)  # told by what is raised; the broker may have nothing to confirm
            raise

    def _confirmed(self, tag: int, multiple: bool) -> None:
        self._unconfirmed -= self._named(tag, multiple)

    def _refused(self, tag: int, multiple: bool) -> None:
        refused = self._named(tag, multiple)
        self._failures.update(dict.fromkeys(refused, MessageNacked("the broker refused the message")))
        self._unconfirmed -= refused

    def _named(self, tag: int, multiple: bool) -> set[int]:
        return {each for each in self._unconfirmed if each <= tag} if multiple else {tag}
