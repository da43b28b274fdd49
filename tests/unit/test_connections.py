"""Connections to task brokers are dropped without waiting for the broker, and without harm to others of the process."""

from __future__ import annotations

import socket
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import kombu
import pytest
from kombu.transport.memory import Transport

from celery_neli.beat.publish import drop_connection, release_connection

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds for something that must not happen.
MOMENT = 0.1


def connection(closing: Callable[[], object]) -> Any:
    """A connection of kombu's that is open, and how it is closed."""

    class Closing(Transport):
        def close_connection(self, connection: Any) -> None:
            closing()

    made = kombu.Connection(transport=Closing)
    made.connect()
    return made


def scheduler(made: Any) -> Any:
    """All that `release_connection` wants of one."""
    return SimpleNamespace(connection=made, producer=object())


def test_a_broker_that_does_not_answer_is_waited_for_a_second_at_most() -> None:
    """The sockets that are opened to say good-bye have a timeout; the process has its own again then."""
    seen: list[float | None] = []
    drop_connection(connection(lambda: seen.append(socket.getdefaulttimeout())))
    assert seen == [1.0]
    assert socket.getdefaulttimeout() is None


def test_what_closing_raises_is_nobody_s_business() -> None:
    """The connection is thrown away in any case."""

    def fail() -> None:
        raise ValueError("any transport's")

    inner = scheduler(connection(fail))
    release_connection(inner)
    assert vars(inner) == {}
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("second", [drop_connection, lambda made: release_connection(scheduler(made))])
def test_two_that_are_dropped_at_once_leave_the_default_timeout_of_sockets_as_it_was(
    second: Callable[[Any], None],
) -> None:
    """While it drops one, kombu sets it for the whole process; then it puts back what it found."""
    first_closes, second_closes, first_done = (threading.Event() for _ in range(3))

    def close_first() -> None:
        first_closes.set()
        second_closes.wait(MOMENT)

    def close_second() -> None:
        second_closes.set()
        first_done.wait(MOMENT)

    def drop_first() -> None:
        drop_connection(made)
        first_done.set()

    made, other = connection(close_first), connection(close_second)
    thread = threading.Thread(target=drop_first)
    thread.start()
    assert first_closes.wait(5)
    second(other)
    thread.join()
    try:
        assert second_closes.is_set()
        assert socket.getdefaulttimeout() is None
    finally:
        socket.setdefaulttimeout(None)
