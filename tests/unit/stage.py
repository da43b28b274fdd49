"""A member on a journal and a group that the test plays by hand, on a clock that it moves."""

from __future__ import annotations

import itertools
import random
from typing import Any

from celery_neli.config import Config
from celery_neli.election.member import Member
from celery_neli.election.records import End, Entry, Event, Record, Started, decode, encode
from celery_neli.election.role_state import Grant, LeaderAcquired
from celery_neli.exceptions import TopicError


class HandJournal:
    """Tells what the test puts in; what is appended goes into `log`, and is told when the test echoes it."""

    def __init__(self, roles: int) -> None:
        self.next: list[Event] = []
        self.log: list[list[bytes]] = [[] for _ in range(roles)]
        self.told = [0] * roles
        self.sent: list[Record] = []
        self.asked: list[tuple[str, int]] = []
        self.topic_error: TopicError | None = None
        self.on_append: Any = lambda record: None

    def read(self, timeout: float) -> list[Event]:
        if self.topic_error is not None:
            raise self.topic_error
        events, self.next = self.next, []
        return events

    def append(self, role: int, key: str, value: bytes) -> None:
        self.log[role].append(value)
        self.sent.append(decode(value))
        self.on_append(self.sent[-1])

    def look_back(self, role: int) -> None:
        self.asked.append(("look_back", role))

    def ask_end(self, role: int) -> None:
        self.asked.append(("ask_end", role))

    def close(self) -> None:
        pass


class HandGroup:
    def __init__(self) -> None:
        self.induced: frozenset[int] = frozenset()
        self.is_member = True
        self.joined = False

    def poll(self) -> None:
        pass

    def join(self) -> None:
        self.joined = True

    def leave(self) -> None:
        self.joined = False

    def close(self) -> None:
        pass


class Lines:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, msg: str, *args: Any) -> None:
        self.lines.append(msg % args)

    warning = error = info


class Stage:
    """One member, `m`, and everything around it."""

    def __init__(self, *roles: str, empty: bool = True, journal: HandJournal | None = None, nonce: Any = None) -> None:
        roles = roles or ("leader",)
        self.now = 100.0
        self.journal = journal or HandJournal(len(roles))
        self.group, self.log = HandGroup(), Lines()
        nonces = itertools.count(1)
        self.heard = 0
        self.member = Member(
            Config(group="g", name="m", roles=roles),
            self.journal,
            self.group,
            clock=lambda: self.now,
            log=self.log,
            rng=random.Random(0),
            nonce=nonce or (lambda: str(next(nonces))),
            on_readback=self.hear,
        )
        self.group.induced = frozenset(range(len(roles)))
        if empty:
            for role in range(len(roles)):
                self.journal.next += [Started(role, 0, oldest=True), End(role)]

    def hear(self) -> None:
        self.heard += 1

    def turn(self, *events: Event, after: float = 0.0) -> list[Any]:
        self.now += after
        self.journal.next += events
        return self.member.step(0)

    def echo(self, after: float = 0.0) -> list[Any]:
        """Read back what was appended since the last echo."""
        journal = self.journal
        for role, log in enumerate(journal.log):
            journal.next += [Entry(role, offset, log[offset]) for offset in range(journal.told[role], len(log))]
            journal.next.append(End(role))
            journal.told[role] = len(log)
        return self.turn(after=after)

    def write(self, record: Record | bytes, role: int = 0) -> None:
        self.journal.log[role].append(record if isinstance(record, bytes) else encode(record))

    def lead(self) -> Stage:
        self.turn()
        assert [type(change) for change in self.echo()] == [LeaderAcquired] * len(self.journal.log)
        self.journal.sent.clear()
        return self

    def grant(self, role: str = "leader") -> Grant:
        return self.member.state(role).grant

    def leads(self, role: str = "leader") -> bool:
        return self.grant(role).leading(self.now)

    def holds(self, role: str = "leader") -> bool:
        return self.grant(role).held(self.now)
