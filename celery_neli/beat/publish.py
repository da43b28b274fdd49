"""Everything between a scheduler and the task broker that knows about a term.

- :func:`leased_producer` makes a kombu Producer that asks the lease before each message leaves.
- The headers of a message name its term, slot and entry.
- :func:`is_transport_error` tells a task broker that failed from code or a message that is wrong.
- :func:`wait_for_broker` and :func:`drop_connection` open and close a connection without hanging.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pickle import PicklingError
from typing import Any, Final

import amqp.exceptions
import kombu.exceptions
from celery.beat import SchedulingError
from celery.schedules import crontab, schedule
from celery.utils.log import get_logger
from celery.utils.time import maybe_make_aware, remaining
from kombu.exceptions import EncodeError, LimitExceeded, OperationalError, SerializerNotInstalled

from celery_neli import hooks
from celery_neli.beat.tenure import Tenure
from celery_neli.logs import escaping
from celery_neli.schedule.cron import cron
from celery_neli.schedule.slots import nominal

logger = escaping(get_logger(__name__))

#: Seconds that dropping one connection may take; it waits for a socket and for nothing else.
DROP_TIMEOUT: Final = 2.0
#: Seconds between two log lines about a task broker that cannot be reached.
BROKER_DOWN_LOG_INTERVAL: Final = 30.0
DATA_ERRORS: Final = (
    TypeError, ValueError, LookupError, ArithmeticError, RecursionError,
    PicklingError, EncodeError, SerializerNotInstalled,
)  # fmt: skip
"""What code raises over data that it did not expect. No broker and no socket raises these."""
_TRANSPORT_ERRORS: tuple[type[BaseException], ...] = (
    OperationalError,
    LimitExceeded,
    amqp.exceptions.MessageNacked,
    amqp.exceptions.ConnectionError,
    amqp.exceptions.ChannelError,
    *((kombu.exceptions.BatchPublishError,) if hasattr(kombu.exceptions, "BatchPublishError") else ()),  # kombu 5.7
)

_dropping = threading.Lock()


# -- the producer --


#: The header by which django-celery-results knows the entry; one that the entry has itself stays.
PERIODIC_TASK_NAME: Final = "periodic_task_name"


class _LeasedProducer:
    """Mixed into the app's Producer class by :func:`leased_producer`."""

    neli_tenure: Tenure

    def _publish(self, body: Any, priority: Any, kind: Any, encoding: Any, headers: dict[str, Any], *rest: Any) -> Any:
        """Send one message if the lease still allows it (kombu.messaging.Producer._publish, whose arguments these are).

        ``publish`` retries below itself by calling this again, so every attempt asks. Connecting and declaring come
        first because both may wait for the task broker; nothing waits between the question and the wire. Raises
        `LeaseEnded` if the term is over; nothing was sent then.
        """
        *address, declare, timeout, confirm_timeout, retry, retry_policy = rest
        producer: Any = self
        base: Any = super()
        tenure = self.neli_tenure
        tenure.in_transport = True
        channel = producer.channel  # a lazy property: connects
        for entity in declare or ():
            # What kombu.common.maybe_declare asks in the end, without its preparations for retries.
            known = channel.connection.client.declared_entities if channel.connection else ()
            if not entity.can_cache_declaration or hash(entity) not in known:
                producer.maybe_declare(entity, retry=retry, **(retry_policy or {}))
        if tenure.headers is not None:
            headers.update(tenure.headers)
            headers.setdefault(PERIODIC_TASK_NAME, tenure.headers["neli_beat_entry"])
        tenure.ask_finish()
        tenure.wired, began = True, time.perf_counter()
        result = base._publish(
            body, priority, kind, encoding, headers, *address, None, timeout, confirm_timeout, retry, retry_policy
        )
        tenure.message_left()
        if hooks.published:
            hooks.published(time.perf_counter() - began)
        return result

    def batch(self, max_size: int = 1) -> Any:
        """Return a batch of one (kombu 5.7), for a message in a buffer would leave after the lease was asked."""
        base: Any = super()
        return base.batch(max_size=1)


class _NamingProducer:
    """Mixed into the app's Producer class by :func:`naming_producer`."""

    neli_lease: Any

    def _publish(self, body: Any, priority: Any, kind: Any, encoding: Any, headers: dict[str, Any], *rest: Any) -> Any:
        """Send one message (kombu.messaging.Producer._publish) with the name of the entry that is being sent."""
        for name, value in (self.neli_lease.headers or {}).items():
            headers.setdefault(name, value)
        return super()._publish(body, priority, kind, encoding, headers, *rest)  # type: ignore[misc]  # likewise


def naming_producer(base: type[Any], lease: Any) -> type[Any]:
    """Return a subclass of the producer class ``base`` that adds the ``headers`` of ``lease`` where there are none."""
    return type(base.__name__, (_NamingProducer, base), {"neli_lease": lease})


def leased_producer(base: type[Any], tenure: Tenure) -> type[Any]:
    """Return a subclass of the producer class ``base`` that sends only while ``tenure`` lasts."""
    return type(base.__name__, (_LeasedProducer, base), {"neli_tenure": tenure})


# -- what a message says --


def due_slot(entry: Any) -> datetime:
    """Return the slot (UTC) for which ``entry`` is sent: its first due time after its last run.

    Exact for intervals, crontabs and `cron`; for other schedules now plus ``remaining_estimate`` (to the millisecond);
    now for an entry that never ran or whose schedule cannot tell. Never blocks.
    """
    now = datetime.now(timezone.utc)
    last, when = entry.last_run_at, entry.schedule
    if last is None:
        return now
    try:
        if isinstance(when, crontab):
            start = maybe_make_aware(last, when.tz).astimezone(when.tz)
            # Celery 5.5 and 5.6 count from the present hour when the last run is long past: let it be that moment.
            then = object.__new__(type(when))
            then.__dict__.update(vars(when), nowfun=lambda: start)
            start, ahead, _ = then.remaining_delta(start)
            due = start + remaining(start, ahead, start)
        elif isinstance(when, cron):
            due = when.next_time(maybe_make_aware(last, when.tz)) or now
        elif type(when) is schedule:
            start = maybe_make_aware(last, when.tz)
            due = start + remaining(start, when.run_every, start, when.relative)
        else:
            due = now + when.remaining_estimate(last)
            due = due.replace(microsecond=due.microsecond // 1000 * 1000)
    except Exception:  # noqa: BLE001 - of a schedule of the user's own: the entry is sent all the same
        return now
    # A start date in the far past (django-celery-beat's start_time) is no slot.
    return now if due < now - timedelta(days=3650) else due.astimezone(timezone.utc)


def beat_headers(entry: Any, *, term: int, slot: datetime | None = None) -> dict[str, Any]:
    """Return the headers of ``entry``: neli_beat_term (int), neli_beat_slot (ISO 8601, UTC), neli_beat_entry (name).

    The term is a fencing token: it rises from leader to leader. Without a ``slot``, :func:`due_slot` says which it is.
    """
    return {
        "neli_beat_term": term,
        "neli_beat_slot": (due_slot(entry) if slot is None else nominal(entry.schedule, slot)).isoformat(),
        "neli_beat_entry": str(entry.name),
    }


# -- the connection --


def is_unconfirmed(app: Any) -> bool:
    """Return True if the task broker could confirm what is published (AMQP) and is not asked to. Does not connect."""
    with app.connection_for_write() as connection:
        amqp_ = connection.get_transport_cls().driver_type == "amqp"
        return amqp_ and not (connection.transport_options or {}).get("confirm_publish")


def wait_for_broker(connection: Any, tenure: Tenure) -> Any:
    """Connect, for as long as this term may start work: Celery's own beat ends after 100 attempts.

    Tries once a second (plus the transport's own connection timeout), and within that time raises `LeaseEnded` once the
    term may start nothing more.
    """
    said = 0.0

    def on_error(exc: Exception, interval: float) -> None:
        nonlocal said
        if not said or time.monotonic() - said > BROKER_DOWN_LOG_INTERVAL:
            logger.error(
                "beat: cannot reach the task broker (%s); trying again, handing over after neli_stall_timeout", exc
            )
            said = time.monotonic()

    connected = connection.ensure_connection(
        on_error, None, interval_start=0.2, interval_step=0.4, interval_max=1.0, callback=tenure.ask_start
    )
    if said:
        logger.info("beat: the task broker answers again")
    return connected


def drop_connection(connection: Any) -> None:
    """Drop a kombu connection on the thread that used it, without waiting for the broker. Never raises.

    Returns within `DROP_TIMEOUT` seconds, plus those of other connections that are being dropped.
    """
    # One at a time: kombu changes the whole process's default timeout of sockets for the duration of the call.
    with _dropping:
        try:
            connection.collect(socket_timeout=1.0)
        except Exception as exc:  # noqa: BLE001 - any transport's; it is being thrown away
            logger.debug("beat: closing the task broker's connection: %r", exc)


def release_connection(scheduler: Any) -> None:
    """Drop the connection of a Celery scheduler (Celery 5.5 and 5.6 leave it open) without waiting for the broker."""
    vars(scheduler).pop("producer", None)
    connection = vars(scheduler).pop("connection", None)
    if connection is not None:
        drop_connection(connection)


# -- errors --


def is_transport_error(connection: Any, exc: BaseException, *, given: bool = False) -> bool:
    """Return True if ``exc`` says that the task broker failed or cannot be reached, so that a retry may help.

    False for what code or a message is to blame for: a refusal by a task's own `apply_async`, arguments that a task
    does not take or that cannot be serialized, a router that raises, a queue or serializer that does not exist.
    What may be either counts as the broker's failure, since a retry loses nothing. Does not block. Any thread.

    The transport of kombu's ``connection`` (or None) knows further errors. ``given``: it had the message by then, which
    had not left. Then all but `DATA_ERRORS` are the transport's: kombu does not name those of every client (botocore's
    ClientError, confluent-kafka's KafkaException), and Redis raises AttributeError on a connection that was closed.
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
    return isinstance(exc, _transport_errors(connection))


def _is_wrapped_key_error(exc: BaseException) -> bool:
    """Kombu 5.7 counts any KeyError as an error of Redis, and wraps it: an unknown compression, for example."""
    return isinstance(exc, OperationalError) and isinstance(exc.__cause__, KeyError)


def _transport_errors(connection: Any) -> tuple[type[BaseException], ...]:
    """Return them with those that the transport names, but for Python's own: any code may raise KeyError or OSError."""
    redis: Any = sys.modules.get("redis.exceptions")
    of_redis = () if redis is None else (redis.ConnectionError, redis.TimeoutError)
    kinds = ("connection_errors", "channel_errors", "recoverable_connection_errors", "recoverable_channel_errors")
    named = () if connection is None else (error for kind in kinds for error in getattr(connection, kind))
    return (*_TRANSPORT_ERRORS, *of_redis, *(each for each in named if each.__module__ != "builtins"))
