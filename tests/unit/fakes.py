"""Fakes for unit tests: a leadership moved by hand, and a task broker that can be watched and held up."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery_neli import signals

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True)
class FakeStanding:
    """The lease at one moment."""

    term: int | None
    leading: bool
    held: bool
    until: float = 0.0


class FakeLeadership:
    """A leadership that changes when the test says so, and sends the real signals from another thread."""

    election = "beat"

    def __init__(self) -> None:
        self.started = 0
        self.stopped = 0
        self.turns = 0
        self.predecessor_led_until: datetime | None = None
        self._standing = FakeStanding(None, False, False)
        self._blinks = 0

    def start(self) -> None:
        self.started += 1

    def snapshot(self) -> FakeStanding:
        if self._blinks:
            self._blinks -= 1
            return FakeStanding(self._standing.term, False, False)
        return self._standing

    def leading(self) -> bool:
        return self._standing.leading

    def held(self) -> bool:
        return self._standing.held

    def led_until(self) -> datetime | None:
        return self.predecessor_led_until

    def progress(self) -> None:
        self.turns += 1

    def stop(self) -> None:
        self.stopped += 1
        self.lapse()

    def grant(self, term: int) -> threading.Thread:
        """Lead in `term`."""
        self._standing = FakeStanding(term, True, True)
        return self._send(signals.leadership_acquired)

    def revoke(self) -> threading.Thread:
        """Hand over: held until the receivers return, which the returned thread waits for."""
        self._standing = FakeStanding(self._standing.term, False, True)
        return self._send(signals.leadership_revoked, then=self.lapse)

    def fence(self) -> threading.Thread:
        """Lose the lease."""
        self.lapse()
        return self._send(signals.leadership_fenced)

    def drain(self) -> None:
        """Begin a hand-over that no signal tells of."""
        self._standing = FakeStanding(self._standing.term, False, True)

    def blink(self) -> None:
        """Lose the lease for the next look at it only, as when late heartbeats are read back."""
        self._blinks = 1

    def lapse(self) -> None:
        """Lose the lease with no signal at all."""
        self._standing = FakeStanding(self._standing.term, False, False)

    def _send(self, signal: Any, then: Any = None) -> threading.Thread:
        term = self._standing.term

        def deliver() -> None:
            signal.send(sender=self, role="0", term=term, election=self.election)
            if then is not None:
                then()

        thread = threading.Thread(target=deliver, name="fake leadership", daemon=True)
        thread.start()
        return thread
