"""What a member knows of one role and announces of it: plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from celery_neli.election.lease import NEVER


@dataclass(frozen=True, slots=True)
class LeaderAcquired:
    """This member leads `role`; `term` is the number of its term, higher than every earlier one of the role."""

    role: str
    term: int


@dataclass(frozen=True, slots=True)
class LeaderRevoked:
    """This member leads no more, but holds the role until the barrier returns or `drain_timeout` is over (R4)."""

    role: str
    term: int


@dataclass(frozen=True, slots=True)
class LeaderFenced:
    """This member holds the role no more and could not choose: another may lead already (R5). Stop at once.

    `reason` is for people.
    """

    role: str
    term: int
    reason: str = field(default="", compare=False)


LeaderEvent = LeaderAcquired | LeaderRevoked | LeaderFenced


@dataclass(frozen=True, slots=True)
class Payload:
    """What the newest effective record of a role carried. The member's thread makes it, and any thread may read it.

    Attributes:
        term: the term of that record; None before the first one.
        data: what it carried, without what the member itself adds (`idle`); None if no record carried any.
        own: True if it was read back from a record of this member's own, of the term that it holds.
        known: True once this is exact (R7). Until then, the other attributes say nothing.
    """

    term: int | None = None
    data: Mapping[str, Any] | None = None
    own: bool = False
    known: bool = False


@dataclass(frozen=True, slots=True)
class Grant:
    """What the lease of one role allows, until when: made by the member's thread, read by any.

    `until` is seconds on the member's clock; `leading` and `held` ask it (R3). `term` is of the grant, or of the last
    one.
    """

    term: int | None = None
    until: float = NEVER
    resigning: bool = False

    def held(self, now: float) -> bool:
        """Work in flight may finish."""
        return now < self.until

    def leading(self, now: float) -> bool:
        """New work may start."""
        return not self.resigning and now < self.until
