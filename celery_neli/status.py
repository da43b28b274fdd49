"""Who leads, read from Kafka alone: the end of every role's journal, the consumer group, and members' notes.

An observer folds the journal as a member does (lease.py), but writes nothing and joins nothing. What it says of a lease
rests on the times that records carry, so it is for people: members never trust them.
"""

from __future__ import annotations

import logging
import time
from concurrent import futures
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from celery_neli.config import Config
from celery_neli.election.lease import Lease, name_of
from celery_neli.election.records import Record, decode
from celery_neli.exceptions import NeliError, NotAllowed, RecordError
from celery_neli.kafka.causes import DENIED
from celery_neli.kafka.client_log import ClientLog
from celery_neli.kafka.properties import admin_properties, reader_properties
from celery_neli.kafka.reader import Event, RawRecord, Reader
from celery_neli.schedule_topic.codec import Note
from celery_neli.schedule_topic.notes import MemberSchedule, disagreement, living, names_by, sharing
from celery_neli.schedule_topic.rules import Pause
from celery_neli.schedule_topic.topic import read_notes_and_pauses

TAIL = 400  # records of each role that are read, from the end

# Seconds:
TIMEOUT = 1.5  # that each part of a look may take
WATCH = 0.1  # more than the interval between two heartbeats
FRESH = 2.0  # within which a heartbeat shows that its author lives
CLAIMS = 0.5  # that the search for the claims of the present terms may take


@dataclass(frozen=True, kw_only=True)
class RoleStatus:
    """One role: `leader` is None without one; times are Unix seconds, `heartbeat_age` and `lease` seconds."""

    role: str
    leader: str | None = None
    term: int | None = None
    since: float | None = None
    heartbeat_age: float | None = None
    lease: float | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class MemberStatus:
    """One member of the consumer group, which has assigned the roles in `induced` to it. Members of one name are shown
    as leading the same roles. `answers` is False if the member is known to be gone though its session has not ended:
    its lease has run out, or its notes have ended.
    """

    name: str
    host: str
    leads: list[str]
    induced: list[str]
    answers: bool = True


@dataclass(frozen=True, kw_only=True)
class ElectionStatus:
    """One election; `members` is None if the group could not be described, `schedules` comes from the members' notes.
    `pauses`: those of many entries that hold.
    `missing_rights`: sentences about what could not be looked at; without the right to read the topic, `exists` is
    False. `seen` names who wrote to the leader topic recently, `gone` who let a lease run out, and when (Unix seconds),
    and was not heard since.
    """

    election: str
    topic: str
    group: str
    exists: bool = False
    roles: list[RoleStatus] = field(default_factory=list)
    members: list[MemberStatus] | None = None
    group_state: str | None = None
    schedules: list[MemberSchedule] = field(default_factory=list)
    pauses: list[Pause] = field(default_factory=list)
    missing_rights: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    gone: dict[str, float] = field(default_factory=dict)

    @property
    def disagreement(self) -> str | None:
        """Return a line that says which schedules the members have, if they differ."""
        return disagreement(self.schedules)

    @property
    def sharing(self) -> str | None:
        """Return a line that says which apps share the group, if they are several: only one has its schedule sent."""
        return sharing(names_by(self.schedules, "app"), self.group)

    @property
    def known(self) -> list[str]:
        """Return the names of the members, as far as they are known: the group's, else those who wrote recently."""
        if self.members is not None:
            return sorted({each.name for each in self.members})
        return sorted({*self.seen, *(each.name for each in self.schedules if not each.silent)}.difference(self.gone))

    @property
    def led(self) -> bool:
        """Return True if every role has a leader."""
        return bool(self.roles) and all(role.leader is not None for role in self.roles)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {**asdict(self), "led": self.led, "disagreement": self.disagreement, "sharing": self.sharing}


def look(config: Config, election: str, *, log: logging.Logger, schedules: bool = False) -> ElectionStatus:
    """Look at one election, with `schedules` at its members' schedules, too; takes some tenths of a second, two seconds
    at most. Raises `NeliError` if no broker answers.
    """
    client_log = ClientLog(log, config.properties, one_shot=True)
    found = ElectionStatus(election=election, topic=config.topic, group=config.group)
    with futures.ThreadPoolExecutor(1) as pool:
        notes = pool.submit(_notes, config, log) if schedules else None
        try:
            found = _look(config, found, client_log)
        except KafkaException as exc:
            error = exc.args[0]
            if error.name() not in DENIED:
                raise client_log.failure(error, config.topic) from None
            return replace(found, missing_rights=[client_log.lacks(["Read"], "topic", config.topic)])
        return found if notes is None else _with_notes(found, *notes.result())


def _with_notes(found: ElectionStatus, notes: dict[str, Note], pauses: list[Pause], why: list[str]) -> ElectionStatus:
    """Add what members' notes say: a member whose note is younger than the end of its lease is there again."""
    now = time.time()
    names = None if found.members is None else {each.name for each in found.members}
    schedules = living(notes, names, now)
    heard = {each.name: now - each.age for each in schedules}
    gone = {name: since for name, since in found.gone.items() if heard.get(name, since) <= since}
    back, silent = heard.keys() - gone.keys(), {each.name for each in schedules if each.silent}
    members = found.members and [
        replace(each, answers=(each.answers or each.name in back) and each.name not in silent) for each in found.members
    ]
    missing_rights = [*found.missing_rights, *why]
    holding = sorted((each for each in pauses if each.holds(now)), key=lambda each: each.at)
    return replace(
        found, pauses=holding, schedules=schedules, members=members, gone=gone, missing_rights=missing_rights
    )


def _notes(config: Config, log: logging.Logger) -> tuple[dict[str, Note], list[Pause], list[str]]:
    """Return the members' notes, the pauses of many entries, and why there are none if a right is missing. No other
    failure matters.
    """
    try:
        return *read_notes_and_pauses(config, log=log, timeout=TIMEOUT), []
    except NotAllowed as exc:
        return {}, [], [str(exc)]
    except NeliError:
        return {}, [], []


def _look(config: Config, found: ElectionStatus, log: ClientLog) -> ElectionStatus:
    admin = log.client(AdminClient, admin_properties(config))
    group = admin.describe_consumer_groups([config.group], request_timeout=TIMEOUT)[config.group]
    with closing(Reader(config, log, config.topic, reader_properties(config))) as reader:
        partitions = min(reader.partitions(TIMEOUT), len(config.roles))
        if not partitions:
            return found
        observers = _observe(reader, config, partitions, group)
    roles = [_role(config.roles[index], each) for index, each in observers.items()]
    missing = "its partition does not exist yet: a member that has the role in neli_roles will add it"
    roles += [RoleStatus(role=role, reason=missing) for role in config.roles[partitions:]]
    gone = {name: since for each in observers.values() for name, since in each.all_gone().items()}
    for role in roles:
        gone.pop(role.leader or "", None)
    seen = {name for each in observers.values() for name in each.authors}
    found = replace(found, exists=True, roles=roles, seen=sorted(seen - gone.keys()), gone=gone)
    try:
        described = group.result(TIMEOUT)
    except (KafkaException, futures.TimeoutError) as exc:
        denied = isinstance(exc, KafkaException) and exc.args[0].name() in DENIED
        return replace(found, missing_rights=[log.lacks(["Describe"], "group", config.group)] if denied else [])
    return replace(found, members=_members(described, config, found), group_state=described.state.name.lower())


class _Observer:
    def __init__(self, config: Config, start: int, *, oldest: bool) -> None:
        self.lease = Lease("/", config)
        self.lease.begin(start, 0.0, oldest=oldest)
        self.heard = float("-inf")  # when the last effective record came (Unix seconds)
        self.bought = 0.0  # the lease in it
        self.times: dict[int, float] = {}
        self.ended = False
        self.authors: set[str] = set()
        self.gone: dict[str, float] = {}  # who let a lease run out, and when (Unix seconds)

    def read(self, event: Event) -> None:
        if not isinstance(event, RawRecord):
            self.ended = True
            return
        record: Record | None = None
        with suppress(RecordError):
            record = decode(event.value or b"")
        before, holder = self.lease.last, self.lease.holder
        self.lease.read(event.offset, record, 0.0)
        if self.lease.lost is not None:
            self.lease.restart("/", 0.0)
        if record is None:
            return
        name = name_of(record.member)
        self.authors.add(name)
        self.gone.pop(name, None)
        if record.kind == "claim":
            self.times[event.offset] = event.time
        if self.lease.last != before:
            self.heard, self.bought = event.time, record.lease
            if record.kind == "claim" and holder not in (None, record.member):
                self.gone[name_of(holder or "")] = event.time

    def all_gone(self) -> dict[str, float]:
        """Return `gone` with the last holder, if its lease has run out."""
        if not self.expired:
            return self.gone
        return {**self.gone, name_of(self.lease.holder or ""): self.heard + self.bought}

    @property
    def age(self) -> float:
        return time.time() - self.heard

    @property
    def expired(self) -> bool:
        """Return True if the lease of the last holder has run out."""
        return self.lease.holder is not None and self.age > self.bought

    def sure(self, group: futures.Future[Any]) -> bool:
        """Return True if who leads can be said without watching: a heartbeat came of late, or its lease has run out and
        the group has lost the holder, too. The clocks alone may mislead.
        """
        holder = self.lease.holder
        if not self.lease.known or holder is None:
            return self.lease.known
        return -0.5 <= self.age <= FRESH or (self.expired and has_lost(group, name_of(holder)))


def has_lost(group: futures.Future[Any], name: str) -> bool:
    """Return True if Kafka has described the group already, and no member of this name is in it."""
    if not group.done() or group.exception() is not None:
        return False
    return all(member.client_id != name for member in group.result().members)


def _observe(reader: Reader, config: Config, partitions: int, group: futures.Future[Any]) -> dict[int, _Observer]:
    observers: dict[int, _Observer] = {}
    for index in range(partitions):
        low, high = reader.bounds(index, TIMEOUT)
        start = max(low, high - TAIL)
        observers[index] = _Observer(config, start, oldest=start == low)
        reader.place(index, start)
    end = time.monotonic() + TIMEOUT
    watched = time.monotonic() + config.heartbeat_interval + WATCH
    while time.monotonic() < end:
        for event in reader.read(0.05):
            observers[event.partition].read(event)
        ended = all(each.ended for each in observers.values())
        if ended and (time.monotonic() > watched or all(each.sure(group) for each in observers.values())):
            break
    _find_claims(reader, observers)
    return observers


def _role(role: str, observer: _Observer) -> RoleStatus:
    lease = observer.lease
    if not lease.known:
        return RoleStatus(role=role, reason="no leader in the last records of the topic")
    if lease.term < 0:
        return RoleStatus(role=role, reason="no member has led yet")
    if lease.holder is None:
        return RoleStatus(role=role, term=lease.term, reason="the last leader handed over")
    name = name_of(lease.holder)
    found = RoleStatus(role=role, term=lease.term, heartbeat_age=max(0.0, observer.age), lease=observer.bought)
    if observer.expired:
        return replace(found, reason=f"the lease of {name} has run out")
    return replace(found, leader=name, since=observer.times.get(lease.term))


def _find_claims(reader: Reader, observers: dict[int, _Observer]) -> None:
    """Find out when the present terms began, where their claims lie before the records that were read. Takes half a
    second at most, whatever their number. A claim that has expired stays unknown.
    """
    wanted = {
        index: each.lease.term
        for index, each in observers.items()
        if each.lease.known and each.lease.holder is not None and each.lease.term not in each.times
    }
    reader.drop()
    for index, term in wanted.items():
        reader.place(index, term)
    end = time.monotonic() + CLAIMS
    while wanted and (left := end - time.monotonic()) > 0:
        for event in reader.read(left):
            term = wanted.pop(event.partition, -1)
            if isinstance(event, RawRecord) and event.offset == term:
                observers[event.partition].times[term] = event.time


def _members(group: Any, config: Config, found: ElectionStatus) -> list[MemberStatus]:
    # A member that is still in the group a session after its lease has run out stands by: others are put out by then.
    over = time.time() - config.session_timeout
    members = []
    for member in group.members:
        owned = member.assignment.topic_partitions if member.assignment is not None else []
        indexes = sorted(each.partition for each in owned if each.partition < len(config.roles))
        members.append(
            MemberStatus(
                name=member.client_id,
                host=member.host,
                leads=[each.role for each in found.roles if each.leader == member.client_id],
                induced=[config.roles[index] for index in indexes],
                answers=found.gone.get(member.client_id, 0.0) <= over,
            )
        )
    return sorted(members, key=lambda each: each.name)
