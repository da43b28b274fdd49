"""What a journal tells its reader, and what a member asks of its journal and its group.

Plain values and two protocols, so that the member can run on Kafka (`kafka/journal.py`, `kafka/group.py`) and on fakes
in a simulation alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Started:
    """Reading begins: the next record of this role has an offset >= `offset`; `oldest`: the log holds nothing older."""

    role: int
    offset: int
    oldest: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """One record of a role's journal; `key` is the name that its author has for the role, None if it gave none."""

    role: int
    offset: int
    value: bytes
    key: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class End:
    """Everything that was in the log at some moment since the last `Started`, `ask_end` or own append was read."""

    role: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The position is not in the log any more (truncated, expired or made anew); a `Started` follows by itself."""

    role: int
    reason: str


Event = Started | Entry | End | Lost


class Journal(Protocol):
    """The log of every role, as one member reads and appends it. Called from the member's own thread only."""

    def read(self, timeout: float) -> list[Event]:
        """Wait up to `timeout` seconds for the first event, then take what is there (a bounded batch).

        Raises `TopicError` while the leader topic is missing or unfit; may be called again.
        """

    def append(self, role: int, key: str, value: bytes) -> None:
        """Hand a record to the producer. Never blocks, never raises: a record may be lost, which the rules bear."""

    def look_back(self, role: int) -> None:
        """Start again from further back in the same log; a `Started` with a lower offset follows."""

    def ask_end(self, role: int) -> None:
        """Have `End` told once more, even if nothing new arrives."""

    def close(self) -> None:
        """Send what was appended (for about a second at most) and end."""


class Group(Protocol):
    """The consumer group, which induces (R2). Called from the member's own thread only."""

    @property
    def induced(self) -> frozenset[int]:
        """The roles (partitions) that the group has assigned to this member."""

    def poll(self) -> None:
        """Serve the group's callbacks; never blocks."""

    def join(self) -> None:
        """Ask for membership; returns at once, may be repeated."""

    def leave(self) -> None:
        """Give up membership; returns at once, may be repeated."""

    def close(self) -> None:
        """Leave and end, within milliseconds."""
