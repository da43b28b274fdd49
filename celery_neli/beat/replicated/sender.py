"""The part of a led scheduler that sends entries side by side, by publishers. The thread that ticks, but for
`apply_async`, which publishers call too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery_neli.beat.replicated.outcomes import Settling
from celery_neli.beat.replicated.pool import Flights
from celery_neli.beat.replicated.publishers import Unsent
from celery_neli.beat.tenure import LeaseEnded
from celery_neli.schedule.due import at_of
from celery_neli.transport_errors import is_transport_error, without_wrapper

if TYPE_CHECKING:
    from datetime import datetime

    from celery_neli.schedule.due import Look
    from celery_neli.schedule.heap import DueHeap

__all__ = ["Dispatching"]

#: Seconds that a hand-over waits for messages that are being sent side by side.
LAND = 5.0


class Dispatching(Settling):
    """Sends what :class:`Flights` takes; the rest goes `LeasedMixin`'s way."""

    _flights: Flights

    def _take_off(self, heap: DueHeap, entry: Any, found: Look, now: datetime) -> bool:
        """Have the entry sent by a publisher, if it is one of those that may be, and somebody is free."""
        self.neli_slot = found.slot
        sent = self._entry_to_send(entry)
        self.neli_slot = None
        if self._fast.key(self, sent, self.producer) is None:
            return False
        if not self._flights.free():
            self._flights.wait()
            return True
        if found.left_out:
            self._tell(entry, found)
        self._flights.begin(entry, sent, found, now)
        assert found.slot is not None, "asked for before"
        self._present.unsettled[entry.name] = found.slot.timestamp()
        heap.remove(entry.name)
        return True

    def _land(self) -> LeaseEnded | None:
        """Settle what was in flight; whether a publisher found that the term is over."""
        ended: LeaseEnded | None = None
        for flight, error in self._flights.landed():
            name, current = flight.entry.name, self.schedule.get(flight.entry.name)
            heap = self._due_heap()
            ended = error if isinstance(error, LeaseEnded) else ended
            if current is not flight.entry:  # defined anew, paused or removed meanwhile
                self._present.unsettled.pop(name, None)
                self._attempts.over(name)
                if error is None and flight.refused is None:
                    self.neli_states.ran(name, at_of(flight.advanced))
                elif flight.wired and flight.found.slot is not None:
                    self._present.perhaps[name] = flight.found.slot.timestamp()
            elif error is None:
                self.schedule[name] = flight.advanced
                self._settle(name)
                if flight.refused is None:
                    self.neli_sent(flight.advanced, flight.found.slot)
                else:
                    self.neli_refused(flight.entry, flight.advanced, flight.found.slot, flight.refused)
                if name in self.schedule:
                    heap.put(name, self._next_look(flight.advanced, flight.found, flight.now))
            elif isinstance(error, (LeaseEnded, Unsent)):
                self._present.unsettled.pop(name, None)
                heap.put(name, self._first_look(current))
            else:
                self.neli_failed(flight.entry, flight.found.slot, wired=flight.wired)
                heap.put(name, self._next_look(flight.entry, flight.found, flight.now))
            self._flights.settled(flight)  # last: SystemExit may cut in anywhere
        return ended

    def _ground(self, *, wait: bool) -> None:
        """The term ends: nothing more takes off; those in flight land within `LAND` seconds, or are in doubt."""
        self._flights.close(LAND if wait else 0.0)
        self._land()
        for flight in self._flights.lost():
            if (entry := self.schedule.get(flight.entry.name)) is not None:
                assert flight.found.slot is not None, "only such take off"
                self._present.perhaps[entry.name] = flight.found.slot.timestamp()
                self._due_heap().put(entry.name, self._first_look(entry))
        self._present.unsettled.clear()

    def _count_sent(self) -> None:
        if self._flights.current() is None:
            super()._count_sent()  # type: ignore[misc]

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:
        """As `LeasedMixin`; a publisher's thread comes here, too, through `apply_entry`."""
        flight = self._flights.current()
        if flight is None:
            return super().apply_async(entry, producer=producer, advance=advance, **kwargs)
        try:
            return self._send(entry, producer)
        except Exception as exc:
            tenure = producer.neli_tenure
            if tenure.left or is_transport_error(producer.connection, exc, given=tenure.in_transport):
                flight.error = exc
                raise
            flight.refused = without_wrapper(exc)
            return None  # the ticking thread logs it

    def neli_apply(self, sent: Any, producer: Any) -> None:
        """Send what a flight sends. On a publisher's thread."""
        self._apply(sent, producer)

    @property
    def neli_stuck(self) -> bool:
        """Entries are being sent, and nothing comes of it: no progress is made."""
        return self._flights.stuck

    # What the classes behind bring.
    producer: Any
    _due_heap: Any
    _fast: Any
    _send: Any
