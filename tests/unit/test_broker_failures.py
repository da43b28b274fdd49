"""A broker that failed is told from code and messages that are wrong."""

from __future__ import annotations

import json
import socket
import ssl
from typing import Any

import amqp.exceptions
import pytest
import redis.exceptions
from celery.beat import SchedulingError
from celery.exceptions import ImproperlyConfigured, QueueNotFound
from kombu import Connection
from kombu.exceptions import EncodeError, LimitExceeded, OperationalError, SerializerNotInstalled

from celery_neli.beat.publish import is_transport_error, without_wrapper

BROKERS = {"redis": "redis://127.0.0.1:1/0", "amqp": "amqp://127.0.0.1:1", "memory": "memory://", "none": None}

TRANSPORT = [
    OperationalError("no route"),
    LimitExceeded("no connection is free"),
    ConnectionRefusedError("refused"),
    ConnectionResetError("reset"),
    BrokenPipeError("gone"),
    TimeoutError("slow"),
    socket.timeout("slow"),  # noqa: UP041 - the name that older code raises
    socket.gaierror(-2, "Name or service not known"),
    ssl.SSLError("handshake"),
    OSError(113, "No route to host"),
    redis.exceptions.ConnectionError("gone"),
    redis.exceptions.TimeoutError("slow"),
    redis.exceptions.BusyLoadingError("loading"),
    amqp.exceptions.RecoverableConnectionError("gone"),
    amqp.exceptions.ConnectionForced("shutdown"),
    amqp.exceptions.MessageNacked("full"),
    amqp.exceptions.AccessRefused("for now"),
]

APPLICATION = [
    KeyError("colour"),
    AttributeError("colour"),
    ValueError("no"),
    TypeError("takes 1 positional argument but 2 were given"),
    RuntimeError("no"),
    FileNotFoundError(2, "No such file or directory", "/etc/shop.conf"),
    PermissionError(13, "Permission denied", "/etc/shop.conf"),
    EncodeError("Object of type object is not JSON serializable"),
    SerializerNotInstalled("yml"),
    QueueNotFound("missing"),
    ImproperlyConfigured("no"),
    json.JSONDecodeError("no", "", 0),
    amqp.exceptions.FrameSyntaxError("Table type {!r} not handled by amqp"),
    RecursionError("too deep"),
]


@pytest.fixture(params=BROKERS)
def connection(request: pytest.FixtureRequest) -> Connection | None:
    """A connection that connects to nothing."""
    url = BROKERS[request.param]
    return None if url is None else Connection(url)


@pytest.mark.parametrize("exc", TRANSPORT, ids=repr)
def test_errors_of_a_broker_and_of_the_way_to_it_are_transport_errors(
    connection: Connection | None, exc: Exception
) -> None:
    """Whichever broker the app has: a task's own `apply_async` may talk to another one."""
    assert is_transport_error(connection, exc)


@pytest.mark.parametrize("exc", APPLICATION, ids=repr)
def test_errors_of_code_and_of_messages_are_none(connection: Connection | None, exc: Exception) -> None:
    """Also those that a transport names among its own, as kombu's Redis does KeyError and OSError."""
    assert not is_transport_error(connection, exc)


def test_errors_that_only_the_transport_knows_count_with_it() -> None:
    """Redis answers that it is read-only."""
    exc = redis.exceptions.ReadOnlyError("you cannot write")
    assert is_transport_error(Connection(BROKERS["redis"]), exc)
    assert not is_transport_error(Connection(BROKERS["memory"]), exc)


def test_the_error_behind_celerys_counts() -> None:
    """`SchedulingError` is what `Scheduler.apply_async` raises for all of them."""
    for cause in (ConnectionResetError("gone"), ValueError("no")):
        with pytest.raises(SchedulingError) as caught:  # noqa: PT012 - as Celery does it
            try:
                raise cause
            except Exception:  # noqa: BLE001
                raise SchedulingError("Couldn't apply") from None
        assert without_wrapper(caught.value) is cause
        assert is_transport_error(None, caught.value) == isinstance(cause, OSError)


def test_an_error_that_was_raised_from_a_transport_error_is_one() -> None:
    """What may be either counts as the broker's: a retry loses nothing."""
    wrapper = RuntimeError("the lock's store does not answer")
    wrapper.__cause__ = ConnectionResetError("gone")
    assert is_transport_error(None, wrapper)
    merely_after = ValueError("no")
    merely_after.__context__ = ConnectionResetError("gone")
    assert not is_transport_error(None, merely_after)


def test_kombus_word_for_a_key_error_is_no_transport_error() -> None:
    """Kombu 5.7 wraps any KeyError of a publish to Redis: that of a compression that does not exist, for example."""
    connection = Connection(BROKERS["redis"])
    with pytest.raises((OperationalError, KeyError)) as caught, connection._reraise_as_library_errors():  # noqa: SLF001
        raise KeyError("nope")
    assert not is_transport_error(connection, caught.value)
    assert isinstance(without_wrapper(caught.value), KeyError), "that is what a log line shows"


def test_causes_that_go_in_circles_end() -> None:
    """An exception may be its own cause's cause."""
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    assert not is_transport_error(None, one)


def test_what_a_closed_connection_stumbles_over_is_a_transport_error() -> None:
    """Kombu's Redis raises AttributeError on it; before the transport had the message, that is the application's."""
    exc = AttributeError("'NoneType' object has no attribute 'hostname'")
    assert is_transport_error(None, exc, given=True)
    assert not is_transport_error(None, exc, given=False)
    assert not is_transport_error(None, TypeError("not serializable"), given=True)


class ClientError(Exception):
    """As botocore's: kombu's SQS transport does not name it."""


@pytest.mark.parametrize("exc", [ClientError("ThrottlingException"), BufferError("queue full"), RuntimeError("closed")])
def test_what_the_transport_raises_is_its_own_whether_kombu_names_it_or_not(exc: Exception) -> None:
    """Elsewhere such an error is the application's."""
    assert is_transport_error(Connection(BROKERS["memory"]), exc, given=True)
    assert not is_transport_error(Connection(BROKERS["memory"]), exc)


@pytest.mark.parametrize("exc", [each for each in APPLICATION if isinstance(each, ValueError | TypeError)], ids=repr)
def test_what_the_transport_raises_over_a_message_is_none(exc: Exception) -> None:
    """The next attempt would raise it, too."""
    assert not is_transport_error(Connection(BROKERS["memory"]), exc, given=True)


@pytest.mark.parametrize("url", ["redis_url", "rabbitmq_url"])
@pytest.mark.parametrize(
    "options",
    [
        {"headers": {"odd": object()}},
        {"headers": {"odd": int}},
        {"serializer": "nope"},
        {"compression": "nope"},
        {"content_type": "text/plain", "content_encoding": "nope"},
    ],
    ids=lambda options: " ".join(options),
)
def test_a_message_that_a_real_broker_cannot_be_given_is_no_failure_of_the_broker(
    url: str, options: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    """Whatever the driver raises over it; the connection is good for the next message."""
    with Connection(request.getfixturevalue(url)) as connection:
        producer = connection.Producer()
        library_errors = connection._reraise_as_library_errors()  # noqa: SLF001 - as Celery does
        with pytest.raises(Exception) as caught, library_errors:
            producer.publish("body", routing_key="nowhere", retry=True, **options)
        assert not is_transport_error(connection, caught.value, given=True)
        producer.publish("body", routing_key="nowhere")
