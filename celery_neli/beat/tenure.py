"""One term of leadership, as the code that sends tasks sees it: may it start, may it finish, or is it over.

A :class:`Tenure` is bound to the term that was in force when it was made. A later term of the same process is another
tenure: what was begun in one is never finished in the next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from celery_neli.config import Config
    from celery_neli.election.grant import Told

__all__ = ["Leader", "LeaseEnded", "Standing", "Tenure"]


class LeaseEnded(BaseException):
    """The term ended while a tick was running: nothing more may be sent.

    Not an :exc:`Exception`, for Celery's ``apply_async`` and ``apply_entry`` and RedBeat's ``maybe_due`` swallow every
    one of those, after the entry was advanced: the task would count as run. It never leaves ``Scheduler.tick``.
    """


class Standing(Protocol):
    """The lease at one moment: the term, and what it allows (``Leadership.snapshot()``)."""

    @property
    def term(self) -> int | None:
        """The term of the lease in force, or of the last one."""

    @property
    def leading(self) -> bool:
        """New work may start."""

    @property
    def held(self) -> bool:
        """Work in flight may finish."""


class Leader(Protocol):
    """What a scheduler needs of :class:`celery_neli.election.leadership.Leadership`."""

    #: Called on the thread that renews when other data were read back from a record of this process's own.
    heard: Callable[[], None] | None
    #: Called on the thread that renews. While it returns False, this process neither leads nor claims.
    fit: Callable[[], bool] | None

    @property
    def election(self) -> str:
        """Its name, for logs."""

    @property
    def config(self) -> Config:
        """What it was made from."""

    def start(self) -> None:
        """Join; once."""

    def snapshot(self, role: str) -> Standing:
        """The lease of the role now. Any thread; takes no lock."""

    def led_until(self, role: str) -> datetime | None:
        """When the preceding leader of the role was last heard of (UTC), if ever."""

    def told(self, role: str) -> Told:
        """What the newest effective record of the role carried. Any thread; takes no lock."""

    def offer(self, role: str, term: int, data: Mapping[str, Any], *, hurry: bool = False) -> None:
        """Put these data into the further records of the term; at once, with ``hurry``. Does not wait."""

    def ask(self, role: str) -> None:
        """Ask whoever leads the role to hand it over to this process. Does not wait."""

    def resign(self, role: str) -> None:
        """Hand the role over, and stand back for a while. Does not wait."""

    def stand_back(self, role: str) -> None:
        """Hand the role over if this process leads it, and do not claim it for a while, which grows with each call: it
        cannot be served here. Does not wait.
        """

    def progress(self) -> None:
        """The owner is alive: it made a turn, or sent a message."""

    def stop(self) -> None:
        """Hand over and leave. Blocks for the drain timeout and a few seconds at most."""


class Tenure:
    """Term ``term`` of ``leader`` in ``role``; ``stopping`` tells that the owner is closing and starts nothing more.

    Reading it takes no lock and never blocks; any thread may. It also knows the entry that is being sent
    (:attr:`headers`) and whether its message has left (:attr:`left`): both belong to the thread that ticks.
    """

    def __init__(self, *, leader: Leader, role: str, term: int, stopping: Callable[[], bool]) -> None:
        self.role, self.term = role, term
        self._leader = leader
        self._stopping = stopping
        #: neli_beat_* headers of the entry in flight; None between entries.
        self.headers: dict[str, Any] | None = None
        #: Messages of the entry in flight that left; reset with each entry.
        self.left = 0
        #: Whether the entry in flight was given to the transport: unless it has left, nobody knows if it arrives.
        self.wired = False
        #: Whether the transport has to do with the entry in flight: it connects, declares, or sends what has not left.
        self.in_transport = False

    def reset(self, headers: dict[str, Any]) -> None:
        """Begin to send the entry that has these headers."""
        self.headers, self.left, self.wired, self.in_transport = headers, 0, False, False

    def may_start(self) -> bool:
        """Whether new work may start in this term (R3, *leading*)."""
        standing = self._leader.snapshot(self.role)
        return standing.leading and standing.term == self.term and not self._stopping()

    def may_finish(self) -> bool:
        """Whether work in flight may finish in this term (R3, *held*: also while a hand-over drains)."""
        standing = self._leader.snapshot(self.role)
        return standing.held and standing.term == self.term

    def ask_start(self) -> None:
        """:raises LeaseEnded: unless :meth:`may_start`."""
        if not self.may_start():
            raise LeaseEnded(f"term {self.term} of {self._leader.election} role {self.role} may start nothing more")

    def ask_finish(self) -> None:
        """:raises LeaseEnded: unless :meth:`may_finish`."""
        if not self.may_finish():
            raise LeaseEnded(f"term {self.term} of {self._leader.election} role {self.role} is over")

    def twin(self) -> Tenure:
        """The same tenure for another thread that sends: with an entry in flight of its own."""
        return Tenure(leader=self._leader, role=self.role, term=self.term, stopping=self._stopping)

    def message_left(self) -> None:
        """Note that a message of the entry in flight went to the task broker: the owner makes progress."""
        self.left += 1
        self.in_transport = False
        self._leader.progress()
