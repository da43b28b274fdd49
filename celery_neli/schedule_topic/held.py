"""The schedule topic for the processes that use it now and then: one session for an app, held while it is used.

A web process that changes an entry should not connect each time. So a session (session.py) stays from the first use
until a minute after the last; then it is closed, and costs nothing more. A forked child makes its own. A session that
hears nothing, because librdkafka lost its brokers or the topic was made again, is replaced by another one within the
time that the caller has.
"""

from __future__ import annotations

import atexit
import logging
import os
import time
import weakref
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Any, Final, TypeVar

from confluent_kafka import KafkaException

from celery_neli.config import Config
from celery_neli.exceptions import NeliError
from celery_neli.kafka.causes import GONE, servers_of
from celery_neli.schedule_topic.codec import ENTRY, STATE, Kind
from celery_neli.schedule_topic.session import TIMEOUT, Session, SessionLostError
from celery_neli.schedule_topic.write import Write
from celery_neli.threads import off_loop, original, spawn

# Seconds:
IDLE: Final = 60.0  # without use, after which the session is closed
AT_EXIT: Final = 0.2  # that the end of the process waits for a use that is under way
ALL: Final = 30.0  # to read all entries

#: Errors of a partition that has no leader now.
_PASSING: Final = frozenset({"_TIMED_OUT", "_TRANSPORT", "LEADER_NOT_AVAILABLE", "NOT_LEADER_FOR_PARTITION"})
_Result = TypeVar("_Result")


class HeldTopic:
    """The schedule topic of `config`, for any thread; one question or change at a time. Everything blocks, for
    `timeout` seconds at most, and raises `NeliError`. Under gevent other greenlets run in that time.
    """

    def __init__(self, config: Config, *, log: logging.Logger) -> None:
        self._config, self._log = config, log
        self._lock: Any = original("_thread", "allocate_lock")()
        self._session: Session | None = None
        self._used = 0.0  # when it was last used (monotonic seconds)
        _alive.add(self)

    def look(
        self,
        names: Collection[str],
        *,
        kinds: Sequence[Kind] = (ENTRY, STATE),
        fresh: bool = True,
        timeout: float = TIMEOUT,
    ) -> dict[tuple[Kind, str], bytes]:
        """Return the records of these names that count now, with all that was acknowledged before; if not `fresh`, as
        they were when this process last asked.
        """
        wanted: list[tuple[Kind, str]] = [(kind, name) for name in names for kind in kinds]
        return self._do(lambda session, end: session.look(wanted, end, fresh=fresh), timeout)

    def write(self, writes: Sequence[Write], *, timeout: float = TIMEOUT) -> set[str]:
        """Write the records and wait until all are acknowledged; return the versions that are void: another definition
        than their `base` was there. If it raises, some may have been written, or will be yet.
        """
        return self._do(lambda session, end: session.write(writes, end), timeout) if writes else set()

    def read_all(
        self, *, timeout: float = ALL, keep: Callable[[str], bool] | None = None
    ) -> dict[tuple[Kind, str], bytes]:
        """Return the definitions and states that count, in no order; `keep` says of which names."""
        return self._do(lambda session, end: session.read_all(keep, end), timeout)

    def pauses(self, *, timeout: float = TIMEOUT) -> dict[str, bytes]:
        """Return the pauses of many entries that were acknowledged before, by name."""
        return self._do(lambda session, end: session.pauses(end), timeout)

    def size(self, name: str) -> int:
        """Return about how many keys the partition of a name has, 0 if it is not known. Does not block."""
        session = self._session
        return 0 if session is None else session.size(name)

    def close(self, *, wait: float = TIMEOUT) -> None:
        """Close the session; the next use makes another. Waits up to `wait` seconds for a use that is under way."""
        if self._lock.acquire(timeout=wait):
            try:
                self._drop()
            finally:
                self._lock.release()

    def _do(self, action: Callable[[Session, float], _Result], timeout: float) -> _Result:
        return off_loop(lambda: self._locked(action, timeout))

    def _locked(self, action: Callable[[Session, float], _Result], timeout: float) -> _Result:
        end, topic = time.monotonic() + timeout, self._config.schedule_topic
        if not self._lock.acquire(timeout=timeout):
            raise NeliError(f"the schedule topic {topic} was not used within {timeout:g} s: other threads wait for it")
        try:
            while True:
                held, began = self._session is not None, time.monotonic()
                session = self._open()
                try:
                    return action(session, end)
                except SessionLostError as lost:
                    if time.monotonic() >= end:
                        servers = servers_of(self._config.properties)
                        raise NeliError(
                            f"the schedule topic {topic} {lost} within {timeout:g} s; is Kafka at {servers} overloaded?"
                        ) from None
                except KafkaException as exception:
                    error = exception.args[0]
                    # A held session may be of brokers that are gone, or of a topic that is; another may lead soon.
                    passes = error.name() in GONE | _PASSING and not session.log.reachability.is_hopeless(began)
                    if not (held or passes) or time.monotonic() >= end:
                        raise session.log.failure(error, topic) from None
                self._drop()
        except BaseException:
            self._drop()  # what it has asked for may still come
            raise
        finally:
            self._used = time.monotonic()
            self._lock.release()

    def _open(self) -> Session:
        if self._session is None:
            self._session = session = Session(self._config, self._log)
            spawn(lambda: self._close_when_idle(session), name="neli-held")
        return self._session

    def _drop(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _close_when_idle(self, session: Session) -> None:
        sleep = original("time", "sleep")
        while self._session is session:
            sleep(max(0.1, self._used + IDLE - time.monotonic()) if self._used else IDLE)
            with self._lock:
                if self._session is session and time.monotonic() >= self._used + IDLE:
                    self._drop()

    def _inherit(self) -> None:
        """In a forked child: let go of the parent's session without a touch."""
        _inherited.append(self._session)  # for ever: the finalisers of its clients must not run here
        self._session, self._lock = None, original("_thread", "allocate_lock")()


_alive: weakref.WeakSet[HeldTopic] = weakref.WeakSet()
_inherited: list[Any] = []
_held: dict[Hashable, HeldTopic] = {}


def held_topic(config: Config, *, log: logging.Logger) -> HeldTopic:
    """Return the schedule topic of `config`, the same for all that have the same brokers and topic. Any thread."""
    key = (
        config.schedule_topic,
        config.group,
        tuple(sorted((name, str(each)) for name, each in config.properties.items())),
    )
    return _held.get(key) or _held.setdefault(key, HeldTopic(config, log=log))


@atexit.register
def close_all() -> None:
    """Close all sessions of this process; the next use makes another. Takes a second at most."""
    for topic in list(_alive):
        topic.close(wait=AT_EXIT)


def _after_fork() -> None:
    for topic in list(_alive):
        topic._inherit()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
