"""Who leads, read from Kafka alone: the end of every role's journal, the consumer group, and members' notes.

An observer folds the journal as a member does (lease.py), but writes nothing and joins nothing. What it says of a lease
rests on the times that records carry (the broker's, where the topic was made by celery-neli), so it is for people:
members never trust them.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from celery_neli.election.lease import Lease, Timing, name_of
from celery_neli.election.records import Record, decode
from celery_neli.exceptions import NeliError, NotAllowed, RecordError
from celery_neli.kafka.asking import metadata
from celery_neli.kafka.causes import OF_NO_READER, is_denied
from celery_neli.kafka.client_log import KafkaLog
from celery_neli.kafka.properties import admin_properties, reader_properties
from celery_neli.kafka.validate import making
from celery_neli.schedule_topic.codec import Note
from celery_neli.schedule_topic.notes import MemberSchedule, apps_of, disagreement, living, sharing
from celery_neli.schedule_topic.one_shot import read_notes

if TYPE_CHECKING:
    import logging
    from collections.abc import Collection

    from confluent_kafka import Message

    from celery_neli.config import Config

TAIL = 400
TIMEOUT = 1.5
WATCH = 0.1  # more than the interval between two heartbeats
FRESH = 2.0
CLAIMS = 0.5


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
    """One member of the consumer group; `leads`: the roles that it leads, `induced`: those that the group has assigned
    to it, both in the order of the configuration. Members of one name are shown as leading the same roles. `answers`
    is False if the member is known to be gone though its session has not ended: its lease has run out, or its notes
    have ended.
    """

    name: str
    host: str
    leads: list[str]
    induced: list[str]
    answers: bool = True


@dataclass(frozen=True, kw_only=True)
class ElectionStatus:
    """One election; `members` is None if the group could not be described, `schedules` comes from the members' notes.
    `missing_rights`: sentences about what could not be looked at; without the right to read the topic, `exists` is
    False. `seen` names who wrote to the leader topic recently, `gone` who let a lease run out, and when (Unix seconds),
    and was not heard since.
    """

    election: str
    topic: str
    group: str
    exists: bool
    roles: list[RoleStatus] = field(default_factory=list)
    members: list[MemberStatus] | None = None
    group_state: str | None = None
    schedules: list[MemberSchedule] = field(default_factory=list)
    missing_rights: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    gone: dict[str, float] = field(default_factory=dict)

    @property
    def disagreement(self) -> str | None:
        """What members' schedules are, if they differ."""
        return disagreement(self.schedules)

    @property
    def sharing(self) -> str | None:
        """Which apps share the group, if they are several: only one of them has its schedule sent."""
        return sharing(apps_of(self.schedules), self.group)

    @property
    def known(self) -> list[str]:
        """The names of the members, as far as they are known: the group's, else those who wrote recently."""
        if self.members is not None:
            return sorted({each.name for each in self.members})
        return sorted({*self.seen, *(each.name for each in self.schedules if not each.silent)}.difference(self.gone))

    @property
    def led(self) -> bool:
        """Whether every role has a leader."""
        return bool(self.roles) and all(role.leader is not None for role in self.roles)

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {**asdict(self), "led": self.led, "disagreement": self.disagreement, "sharing": self.sharing}


def look(config: Config, election: str, *, log: logging.Logger, schedules: bool = False) -> ElectionStatus:
    """Look at one election, with `schedules` at its members' schedules, too; takes some tenths of a second, two seconds
    at most.

    Raises `NeliError` if no broker answers.
    """
    klog = KafkaLog(log, config.properties, one_shot=True)
    with ThreadPoolExecutor(1) as pool:
        notes = pool.submit(_notes, config, log) if schedules else None
        try:
            found = _look(config, election, klog)
        except KafkaException as exc:
            error = exc.args[0]
            if is_denied(error.name()):
                right = klog.lacks(["Read"], "topic", config.topic)
                return ElectionStatus(
                    election=election, topic=config.topic, group=config.group, exists=False, missing_rights=[right]
                )
            raise NeliError(f"Kafka at {config.properties['bootstrap.servers']}: {klog.reason(error)}") from None
        if notes is None:
            return found
        names = None if found.members is None else {each.name for each in found.members}
        notes_read, why = notes.result()
        now = time.time()
        found = _with_notes(found, living(notes_read, names, now), now)
        return replace(found, missing_rights=[*found.missing_rights, *why])


def _with_notes(found: ElectionStatus, told: list[MemberSchedule], now: float) -> ElectionStatus:
    """Add what members' notes say: a member whose note is younger than the end of its lease is there again."""
    heard = {each.name: now - each.age for each in told}
    gone = {name: since for name, since in found.gone.items() if heard.get(name, since) <= since}
    silent = {each.name for each in told if each.silent}
    members = found.members and [
        replace(
            each, answers=(each.answers or (each.name in heard and each.name not in gone)) and each.name not in silent
        )
        for each in found.members
    ]
    return replace(found, schedules=told, members=members, gone=gone)


def _notes(config: Config, log: logging.Logger) -> tuple[dict[str, Note], list[str]]:
    """Return the members' notes, and why there are none if a right is missing. If they take too long, the election is
    returned without them.
    """
    try:
        return read_notes(config, log=log, timeout=TIMEOUT), []
    except NotAllowed as exc:
        return {}, [str(exc)]
    except NeliError:
        return {}, []


def _look(config: Config, election: str, klog: KafkaLog) -> ElectionStatus:
    extra: dict[str, Any] = {"logger": klog, "error_cb": klog.remark}
    with making(config.properties):
        admin = AdminClient({**admin_properties(config), **extra})
        reader = Consumer({**reader_properties(config), **extra})
    group = admin.describe_consumer_groups([config.group], request_timeout=TIMEOUT)[config.group]
    try:
        found = metadata(reader, klog, config.topic, TIMEOUT)
        if found.error is not None and is_denied(found.error.name()):
            raise KafkaException(found.error)
        if found.error is not None or not found.partitions:
            return ElectionStatus(election=election, topic=config.topic, group=config.group, exists=False)
        roles, seen, gone = _roles(reader, config, min(len(found.partitions), len(config.roles)), group)
    finally:
        reader.close()
    # A member that is still in the group a session after its lease has run out stands by: others are put out by then.
    over = time.time() - config.session_timeout
    members, state = _members(group, config, roles, gone=[name for name, since in gone.items() if since > over])
    denied = members is None and _is_refused(group)
    return ElectionStatus(
        election=election,
        topic=config.topic,
        group=config.group,
        exists=True,
        roles=roles,
        members=members,
        group_state=state,
        missing_rights=[klog.lacks(["Describe"], "group", config.group)] if denied else [],
        seen=sorted(seen - gone.keys()),
        gone=gone,
    )


def _is_refused(group: Future[Any]) -> bool:
    error = group.exception() if group.done() else None
    return isinstance(error, KafkaException) and is_denied(error.args[0].name())


class _Observer:
    """The journal of one role up to its end, folded."""

    def __init__(self, start: int, *, oldest: bool) -> None:
        self.lease = Lease("/", Timing(heartbeat_interval=1, heartbeat_timeout=3, takeover_delay=1, drain_timeout=1))
        self.lease.begin(start, 0.0, oldest=oldest)
        self.last: tuple[Record, float] | None = None  # last effective record, when (Unix seconds)
        self.times: dict[int, float] = {}
        self.ended = False
        self.authors: set[str] = set()
        self.gone: dict[str, float] = {}  # who let a lease run out, and when (Unix seconds)

    def read(self, message: Message) -> None:
        offset, seconds = message.offset() or 0, message.timestamp()[1] / 1000
        try:
            record: Record | None = decode(message.value() or b"")
        except RecordError:
            record = None
        before, holder = self.lease.last, self.lease.holder
        self.lease.read(offset, record, 0.0)
        if self.lease.lost is not None:
            self.lease.begin_anew("/", 0.0)
        if record is not None and record.kind == "claim":
            self.times[offset] = seconds
        if record is not None:
            self.authors.add(name_of(record.member))
            self.gone.pop(name_of(record.member), None)
        if self.lease.last != before and record is not None:
            self.last = (record, seconds)
            if record.kind == "claim" and holder not in (None, record.member):
                self.gone[name_of(holder or "")] = seconds

    @property
    def age(self) -> float:
        return float("inf") if self.last is None else time.time() - self.last[1]

    @property
    def expired(self) -> bool:
        """Whether the lease of the last holder has run out."""
        return self.lease.holder is not None and self.last is not None and self.age > self.last[0].lease

    def sure(self, group: Future[Any]) -> bool:
        """Nothing needs to be watched to say who leads: a heartbeat came of late, or its lease has run out and the
        group has lost the holder, too. The clocks alone may mislead.
        """
        holder = self.lease.holder
        if not self.lease.known or holder is None:
            return self.lease.known
        return -0.5 <= self.age <= FRESH or (self.expired and has_lost(group, name_of(holder)))


def has_lost(group: Future[Any], name: str) -> bool:
    """Return True if Kafka has described the group already, and no member of this name is in it."""
    if not group.done() or group.exception() is not None:
        return False
    return all(member.client_id != name for member in group.result().members)


def _roles(
    reader: Consumer, config: Config, partitions: int, group: Future[Any]
) -> tuple[list[RoleStatus], set[str], dict[str, float]]:
    """Return the roles; who wrote the records that were read; and who of them let a lease run out since, and when."""
    observers: dict[int, _Observer] = {}
    for index in range(partitions):
        low, high = reader.get_watermark_offsets(TopicPartition(config.topic, index), timeout=TIMEOUT)
        observers[index] = _Observer(max(low, high - TAIL), oldest=high - TAIL <= low)
    reader.assign([TopicPartition(config.topic, index, each.lease.newest + 1) for index, each in observers.items()])
    end = time.monotonic() + TIMEOUT
    watched = time.monotonic() + config.heartbeat_interval + WATCH
    while time.monotonic() < end:
        message = reader.poll(0.05)
        if message is not None:
            observer = observers[message.partition() or 0]
            error = message.error()
            if error is None:
                observer.read(message)
            elif error.name() == "_PARTITION_EOF":
                observer.ended = True
            elif error.name() not in OF_NO_READER:
                raise KafkaException(error)
        ended = all(each.ended for each in observers.values())
        if ended and (time.monotonic() > watched or all(each.sure(group) for each in observers.values())):
            break
    _find_claims(reader, config, observers)
    told = [_role(config.roles[index], each) for index, each in observers.items()]
    missing = "its partition does not exist yet: a member that has the role in neli_roles will add it"
    told += [RoleStatus(role=role, reason=missing) for role in config.roles[partitions:]]
    seen = {name for each in observers.values() for name in each.authors}
    gone: dict[str, float] = {}
    for each in observers.values():
        gone.update(each.gone)
        if each.expired and each.last is not None:
            gone[name_of(each.lease.holder or "")] = each.last[1] + each.last[0].lease
    leaders = {role.leader for role in told}
    return told, seen, {name: since for name, since in gone.items() if name not in leaders}


def _role(role: str, observer: _Observer) -> RoleStatus:
    lease = observer.lease
    if not lease.known:
        return RoleStatus(role=role, reason="no leader in the last records of the topic")
    if lease.term < 0:
        return RoleStatus(role=role, reason="no member has led yet")
    if lease.holder is None or observer.last is None:
        return RoleStatus(role=role, term=lease.term, reason="the last leader handed over")
    record, _ = observer.last
    name = name_of(lease.holder)
    common: dict[str, Any] = {
        "role": role,
        "term": lease.term,
        "heartbeat_age": max(0.0, observer.age),
        "lease": record.lease,
    }
    if observer.expired:
        return RoleStatus(reason=f"the lease of {name} has run out", **common)
    return RoleStatus(leader=name, since=observer.times.get(lease.term), **common)


def _find_claims(reader: Consumer, config: Config, observers: dict[int, _Observer]) -> None:
    """When the present terms began, where their claims lie before the records that were read; half a second at most,
    whatever their number. One that has expired stays unknown.
    """
    wanted = {
        index: each.lease.term
        for index, each in observers.items()
        if each.lease.known and each.lease.holder is not None and each.lease.term not in each.times
    }
    reader.assign([TopicPartition(config.topic, index, term) for index, term in wanted.items()])
    end = time.monotonic() + CLAIMS
    while wanted and (left := end - time.monotonic()) > 0:
        message = reader.poll(left)
        index = -1 if message is None else message.partition()
        if message is None or index not in wanted:
            continue
        term = wanted.pop(index)
        reader.incremental_unassign([TopicPartition(config.topic, index)])
        if message.error() is None and message.offset() == term:
            observers[index].times[term] = message.timestamp()[1] / 1000


def _members(
    group: Future[Any], config: Config, roles: list[RoleStatus], *, gone: Collection[str]
) -> tuple[list[MemberStatus] | None, str | None]:
    try:
        described = group.result(TIMEOUT)
    except (KafkaException, TimeoutError):
        return None, None
    members = []
    for member in described.members:
        owned = member.assignment.topic_partitions if member.assignment is not None else []
        indexes = sorted(each.partition for each in owned if each.partition < len(config.roles))
        induced = [config.roles[index] for index in indexes]
        leads = [each.role for each in roles if each.leader == member.client_id]
        members.append(
            MemberStatus(
                name=member.client_id, host=member.host, leads=leads, induced=induced,
                answers=member.client_id not in gone,
            )
        )  # fmt: skip
    return sorted(members, key=lambda each: each.name), described.state.name.lower()
