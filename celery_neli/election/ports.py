"""What a member needs: the log of each role, and the consumer group; Kafka or a simulation provides them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from celery_neli.config import Config


@dataclass(frozen=True, slots=True)
class Started:
    """Reading starts: no next record of this role is before `offset`; `oldest`: the log holds nothing older."""

    role: int
    offset: int
    oldest: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """One record of a role's journal; `key` is its author's name of the role, None if it gave none."""

    role: int
    offset: int
    value: bytes
    key: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class End:
    """All that was in the log at some moment since the last `Started`, `ask_end` or own append was read."""

    role: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The position is gone from the log (truncated, expired, or a new topic); a `Started` follows by itself."""

    role: int
    reason: str


Event = Started | Entry | End | Lost


class Journal(Protocol):
    """The log of every role, as one member reads and appends it. Only the member's thread calls it."""

    def read(self, timeout: float) -> list[Event]:
        """Wait up to `timeout` seconds for events. Raises `TopicError` while the leader topic is missing or unfit."""

    def append(self, role: int, key: str, value: bytes) -> None:
        """Give a record to the producer. Never block and never raise: the rules bear the loss of a record."""

    def look_back(self, role: int) -> None:
        """Start again from further back in the same log; a `Started` with a lower offset follows."""

    def ask_end(self, role: int) -> None:
        """Return `End` once more, even if nothing new arrives."""

    def close(self) -> None:
        """Send what was appended, for about a second at most, and end."""


class Group(Protocol):
    """The consumer group, which induces (R2). Only the member's thread calls it."""

    @property
    def induced(self) -> frozenset[int]:
        """The roles (partitions) that the group has assigned to this member."""

    @property
    def is_member(self) -> bool:
        """True from the group's first assignment, which may be of nothing, until the membership is lost or given up."""

    def poll(self) -> None:
        """Serve the group's callbacks; never block."""

    def join(self) -> None:
        """Ask for membership; return at once. May be repeated."""

    def leave(self) -> None:
        """Give up membership; return at once. May be repeated."""

    def close(self) -> None:
        """Leave and end, within milliseconds."""


Connect = Callable[[Config, logging.Logger], tuple[Journal, Group]]
"""Make the clients of one member, with its logger; wait for no broker. Raises `ConfigurationError` for bad settings."""
