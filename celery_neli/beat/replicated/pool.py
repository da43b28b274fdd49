"""Entries on their way: sent side by side, by publishers, while more is due than one connection can send in time.

Only what the fast path knows is sent so: nobody's own code runs there, but for what is around `apply_entry`. An entry
has one slot in flight at a time, so its slots stay in order; until it is settled, the mark *done* stays below it.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from celery.utils.log import get_logger

from celery_neli.beat.publish import beat_headers, leased_producer
from celery_neli.beat.replicated.batch import batch_of
from celery_neli.beat.replicated.publishers import Publishers, Unsent
from celery_neli.beat.tenure import LeaseEnded
from celery_neli.logs import escaping
from celery_neli.schedule.due import advance

if TYPE_CHECKING:
    from datetime import datetime

    from celery_neli.beat.replicated.batch import Batch
    from celery_neli.schedule.due import Look
    from celery_neli.schedule.heap import DueHeap

__all__ = ["Flight", "Flights"]

logger = escaping(get_logger(__name__))

#: Seconds by which an entry must be late before publishers are called in.
BACKLOG = 0.05
#: Seconds for which they are left out after one of them failed: the ticking thread waits for a broker that is gone.
CALM = 2.0
#: Seconds to wait for an outcome at a time.
PATIENCE = 0.05
#: How many a publisher sends before it waits for the broker's answers, where the transport can.
BATCH = 20
#: Seconds without an outcome after which an entry does not go on.
STUCK = 5.0


@dataclass(eq=False, slots=True)
class Flight:
    """One slot of an entry on its way. ``entry``: before it, ``advanced``: after it, ``sent``: as it is sent."""

    entry: Any
    advanced: Any
    sent: Any
    found: Look
    now: datetime
    headers: dict[str, Any]
    error: Exception | None = None
    #: What the application raised instead of sending it, which is no `error`.
    refused: BaseException | None = None
    wired: bool = False
    #: When it took off (`time.monotonic`).
    at: float = field(default_factory=time.monotonic)


class Flights:
    """The entries of one scheduler and term that are in flight. The thread that ticks, but for `current`."""

    def __init__(self, scheduler: Any, *, count: int) -> None:
        self._scheduler = scheduler
        self._publishers: Publishers[Flight] | None = None
        self._count = count
        self._by_name: dict[str, Flight] = {}
        self._by_thread: dict[int, Flight] = {}
        self._calm_until = 0.0

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __bool__(self) -> bool:
        return bool(self._by_name)

    @property
    def stuck(self) -> bool:
        """An entry is in flight, and nothing has come of it for a while."""
        first = next(iter(self._by_name.values()), None)  # they take off in this order
        return first is not None and time.monotonic() - first.at > STUCK

    def wants(self, heap: DueHeap, late: float, now: float) -> bool:
        """Whether an entry that is ``late`` by so many seconds should be sent side by side with others."""
        if self._count < 2 or time.monotonic() < self._calm_until:
            return False
        second = heap.second()
        return late > BACKLOG and second is not None and second <= now

    def free(self) -> bool:
        """Whether somebody is free to send another one."""
        return self._publishers is None or self._publishers.free() > 0

    def begin(self, entry: Any, sent: Any, found: Look, now: datetime) -> None:
        """Send this slot; somebody is `free`. Does not block. :raises LeaseEnded: the term may start nothing more."""
        scheduler = self._scheduler
        if self._publishers is None:
            self._publishers = Publishers(count=self._count, connect=self._connect, send=self._send, batch=BATCH)
        tenure = scheduler.neli_tenure
        tenure.ask_start()
        headers = beat_headers(entry, term=tenure.term, slot=found.slot)
        flight = Flight(entry, advance(entry, found.slot, now), sent, found, now, headers)
        self._by_name[entry.name] = flight
        self._publishers.submit(flight)

    def landed(self) -> list[tuple[Flight, BaseException | None]]:
        """Return the outcome of flights since the last call: None where the message left, or was `refused`. Does not
        block. Each is in flight until it is `settled`.
        """
        if self._publishers is None:
            return []
        finished = self._publishers.finished()
        outcomes = [(flight, each if isinstance(each, BaseException) else None) for flight, each in finished]
        for _, error in outcomes:
            if isinstance(error, Exception) and not isinstance(error, Unsent):
                self._calm_until = time.monotonic() + CALM
        return outcomes

    def settled(self, flight: Flight) -> None:
        """It was dealt with."""
        del self._by_name[flight.entry.name]

    def lost(self) -> list[Flight]:
        """Those that have not landed."""
        return list(self._by_name.values())

    def wait(self) -> None:
        """Wait until one lands, for a moment at most."""
        if self._publishers is not None:
            self._publishers.wait(PATIENCE)

    def close(self, timeout: float) -> None:
        """Begin nothing more; wait up to ``timeout`` seconds for those in flight. `landed` tells of them; what became
        of others nobody knows.
        """
        if self._publishers is not None:
            self._publishers.close(timeout)

    def current(self) -> Flight | None:
        """The flight that the calling thread sends."""
        return self._by_thread.get(threading.get_ident())

    def _connect(self) -> Any:
        scheduler = self._scheduler
        connection = scheduler.app.connection_for_write()
        connection.ensure_connection(max_retries=1, interval_start=0.2)
        leased = leased_producer(scheduler.neli_producer_base, scheduler.neli_tenure.twin())
        producer = leased(connection, auto_declare=False)
        producer.neli_batch = batch_of(producer)
        return producer

    def _send(self, flights: list[Flight], producer: Any) -> list[BaseException | None]:
        """What came of each: None where its message left (and the broker said so if it can), or it was `refused`."""
        batch: Batch = producer.neli_batch
        batch.begin()
        marks = [batch.mark()]
        outcomes: list[BaseException | None] = []
        for flight in flights:
            error: BaseException | None = None
            try:
                self._send_one(flight, producer)
            except BaseException as exc:  # noqa: BLE001 - the ticking thread's to judge
                error = exc
            outcomes.append(error)
            marks.append(batch.mark())
            if error is not None:  # the connection may be gone
                break
        batch.settle(producer.neli_tenure.ask_finish)
        for n, (since, until) in enumerate(pairwise(marks)):
            if outcomes[n] is None and flights[n].refused is None:
                outcomes[n] = batch.failure(since, until)
                if isinstance(outcomes[n], Exception):
                    logger.error(
                        "beat: entry=%s was not confirmed by the task broker: %r", flights[n].entry.name, outcomes[n]
                    )
        return outcomes + [Unsent("another one failed before it")] * (len(flights) - len(outcomes))

    def _send_one(self, flight: Flight, producer: Any) -> None:
        tenure = producer.neli_tenure
        tenure.reset(flight.headers)
        me = threading.get_ident()
        self._by_thread[me] = flight
        try:
            self._scheduler.neli_apply(flight.sent, producer)
        finally:
            del self._by_thread[me]
            tenure.headers, flight.wired = None, tenure.wired
        if flight.error is not None:
            raise flight.error
        if flight.refused is None and not tenure.left:
            raise LeaseEnded("nothing left")
