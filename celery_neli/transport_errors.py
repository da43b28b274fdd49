"""Tell a task broker that failed from code or a message that is wrong."""

from __future__ import annotations

import sys
from pickle import PicklingError
from typing import TYPE_CHECKING, Any, Final

import amqp.exceptions
import kombu.exceptions
from celery.beat import SchedulingError
from kombu.exceptions import EncodeError, LimitExceeded, OperationalError, SerializerNotInstalled

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DATA_ERRORS", "is_transport_error", "without_wrapper"]

DATA_ERRORS: Final = (
    TypeError, ValueError, LookupError, ArithmeticError, RecursionError,
    PicklingError, EncodeError, SerializerNotInstalled,
)  # fmt: skip
"""What code raises over data that it did not expect. No broker and no socket raises these."""

_KNOWN: tuple[type[BaseException], ...] = (
    OperationalError,
    LimitExceeded,
    amqp.exceptions.MessageNacked,
    amqp.exceptions.ConnectionError,
    amqp.exceptions.ChannelError,
    *((kombu.exceptions.BatchPublishError,) if hasattr(kombu.exceptions, "BatchPublishError") else ()),  # kombu 5.7
)


def is_transport_error(connection: Any, exc: BaseException, *, given: bool = False) -> bool:
    """Return True if ``exc`` says that the task broker failed or cannot be reached, so that a retry may help.

    False for what code or a message is to blame for: a refusal by a task's own `apply_async`, arguments that a task
    does not take or that cannot be serialized, a router that raises, a queue or serializer that does not exist.
    What may be either counts as the broker's failure, since a retry loses nothing.

    Args:
        connection: kombu's Connection to the task broker, whose transport knows further errors; or None.
        exc: what was raised; Celery's `SchedulingError` stands for the error behind it.
        given: True if the transport had the message by then, and the message had not left. Then all but `DATA_ERRORS`
            are the transport's: kombu does not name those of every client (botocore's ClientError, confluent-kafka's
            KafkaException), and Redis raises AttributeError on a connection that was closed.

    Does not block and does not connect. May be called from any thread.
    """
    exc = without_wrapper(exc)
    if given and not isinstance(exc, (*DATA_ERRORS, amqp.exceptions.FrameSyntaxError)):
        return True
    return any(_is_transport(connection, each) for each in _explicit_causes(exc))


def without_wrapper(exc: BaseException) -> BaseException:
    """Return the error behind Celery's `SchedulingError` and behind kombu's word for a KeyError, or ``exc`` itself."""
    behind = exc.__cause__ or exc.__context__
    if isinstance(exc, SchedulingError) and behind is not None:
        exc = behind
    return exc.__cause__ if _is_wrapped_key_error(exc) and exc.__cause__ is not None else exc


def _explicit_causes(exc: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while exc is not None and id(exc) not in seen:
        seen.add(id(exc))
        yield exc
        exc = exc.__cause__


def _is_transport(connection: Any, exc: BaseException) -> bool:
    if _is_wrapped_key_error(exc):
        return False
    if isinstance(exc, amqp.exceptions.FrameSyntaxError):
        return False  # py-amqp's own word for headers and properties that AMQP cannot express
    if isinstance(exc, OSError):
        return exc.filename is None  # else a file's error, not a socket's
    return isinstance(exc, (*_KNOWN, *_of_redis(), *_of_connection(connection)))


def _is_wrapped_key_error(exc: BaseException) -> bool:
    """Kombu 5.7 counts any KeyError as an error of Redis, and wraps it: an unknown compression, for example."""
    return isinstance(exc, OperationalError) and isinstance(exc.__cause__, KeyError)


def _of_redis() -> tuple[type[BaseException], ...]:
    redis: Any = sys.modules.get("redis.exceptions")
    return () if redis is None else (redis.ConnectionError, redis.TimeoutError)


def _of_connection(connection: Any) -> tuple[type[BaseException], ...]:
    """The errors that the transport names, but for Python's own: KeyError or OSError may be raised by any code."""
    if connection is None:
        return ()
    named = (
        *connection.connection_errors,
        *connection.channel_errors,
        *connection.recoverable_connection_errors,
        *connection.recoverable_channel_errors,
    )
    return tuple(each for each in named if each.__module__ != "builtins")
