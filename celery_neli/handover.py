"""Hand roles over from outside, through the leader topic: `celery neli resign` and `celery neli repair`.

The first one asks a leader to make way. The second one makes the records of the beats' roles fit `neli_shards` again:
beats refuse to serve if the records name more shards than they have, as after `neli_shards` was lowered, or after a
record was forged or garbled, for entries of the others would run nowhere, or twice. The repair is a member of the
election for a moment: it leads every role, which is impossible while another member leads it, and hands them over with
records that fit.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from confluent_kafka import KafkaException

from celery_neli.beat.replicated.claims import Watermarks
from celery_neli.beat.replicated.term import BASE, SHARDS
from celery_neli.config import Config, parent, shard_roles
from celery_neli.election.lease import boottime
from celery_neli.election.member import Member
from celery_neli.election.records import Record, encode
from celery_neli.election.role_state import LeaderRevoked
from celery_neli.exceptions import NeliError
from celery_neli.kafka.client_log import ClientLog
from celery_neli.kafka.journal import KafkaJournal
from celery_neli.kafka.properties import producer_properties, reader_properties
from celery_neli.kafka.reader import Reader
from celery_neli.kafka.writer import Writer
from celery_neli.printable import printable
from celery_neli.settings import SHARDS_MOST
from celery_neli.status import ElectionStatus, RoleStatus, look

# Seconds:
LOOK_AGAIN = 0.1  # between two looks at who leads
SETTLED = 5.0  # a member that has led for longer can serve its role
KNOWN = 5.0  # for reading who leads. If the records have expired, that is not known before a member leads
ASK = 2.0  # for one question
PAUSE = 0.05  # that a turn of the repair's member may wait


def hand_over(
    config: Config, election: str, *, role: str | None, to: str | None, timeout: float, log: logging.Logger
) -> tuple[RoleStatus, RoleStatus, float]:
    """Ask the leader of `role` to resign, in favour of the member named `to` if given; wait for the next leader, for up
    to `timeout` seconds. Return the role before and after, and the seconds from request to new leader.

    Raises `NeliError` if the role or member is unknown, no member leads, or no other member took over in time.
    """
    if role is None and len(config.roles) > 1:
        raise NeliError(f"the {election} election has several roles; name one with --role: {', '.join(config.roles)}")
    role = config.roles[0] if role is None else role
    if role not in config.roles:
        raise NeliError(
            f"the {election} election has no role {role!r}; it has {', '.join(config.roles)}"
            " (choose the election with --election)"
        )
    status = look(config, election, log=log, schedules=election == "beat")
    if not status.exists and status.missing_rights:
        raise NeliError(status.missing_rights[0])
    before = next((each for each in status.roles if each.role == role), None)
    if before is None or before.leader is None:
        reason = "its leader topic does not exist" if before is None else before.reason
        raise NeliError(f"no member leads {election} role {role}: {reason}")
    if to is not None:
        _refuse_successor(status, to)
    if to == before.leader:
        raise NeliError(f"{to} already leads {election} role {role}")
    began = time.monotonic()
    member = f"request/{secrets.token_hex(6)}"
    request = Record(kind="request", member=member, seq=0, lease=0.0, to=to, term=before.term)
    client_log = ClientLog(log, config.properties, one_shot=True)
    with closing(Writer(config, client_log, config.topic, producer_properties(config))) as writer:
        failed = writer.send_all([(config.roles.index(role), role, encode(request))], config.heartbeat_timeout)
    if failed:
        raise NeliError(f"the request could not be sent: {failed}")
    while time.monotonic() - began < timeout:
        for each in look(config, election, log=log).roles:
            if each.role == role and each.leader is not None and each.term != before.term:
                return before, each, time.monotonic() - began
        time.sleep(LOOK_AGAIN)
    raise NeliError(
        f"{before.leader} was asked to hand over, but no other member led {election} role {role} within {timeout:g} s"
    )


def _refuse_successor(status: ElectionStatus, to: str) -> None:
    if to not in status.known:
        names = ", ".join(status.known) or "none"
        if status.members is None:
            names += "; Kafka does not describe the group (the embedded one cannot): leave out --to for any member"
        raise NeliError(f"the {status.election} election has no known member {to!r}; it has: {names}")
    if status.members is not None and not any(each.answers for each in status.members if each.name == to):
        raise NeliError(f"{to} is still in the {status.election} group, but does not answer; name another member")


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """What the records of one role are to carry from now on (`data`), and how to say so (`what`)."""

    role: int
    data: Mapping[str, Any]
    what: str


def plan(found: Sequence[Mapping[str, Any] | None], shards: int, *, now: float) -> list[Correction]:
    """Return what must change so that beats with so many shards can serve; nothing if they can already.

    `found`: what the newest record of each role carries. `now`: Unix seconds.
    """
    named = [each.get(SHARDS, 1) if each else 0 for each in found]
    if all(isinstance(each, int) and not isinstance(each, bool) and each <= shards for each in named):
        return []
    changes = []
    for role, data in enumerate(found):
        carried: dict[str, Any] = {SHARDS: shards}
        what = "its entries are distributed among the others"
        if role < shards:
            heirs = [index for index in range(len(found)) if _heir(index, shards) == role]
            carried |= _together([Watermarks.of(found[index], now=now) for index in heirs])
            what = "its marks stay" if len(heirs) < 2 else f"with the marks of {len(heirs)} roles"
            if isinstance(base := (data or {}).get(BASE), int):
                carried[BASE] = base
        if data is not None or role < shards:
            changes.append(Correction(role=role, data=carried, what=f"shards {named[role]!r:.40} -> {shards}, {what}"))
    return changes


def _heir(role: int, shards: int) -> int:
    while role >= shards:
        role = parent(role)
    return role


def _together(found: Sequence[Watermarks | None]) -> dict[str, Any]:
    """Return the marks of several roles as those of one: in doubt for one is in doubt, settled for all is settled."""
    marks = [each for each in found if each is not None]
    if not marks:
        return {}
    attempted = [each.attempted for each in marks if each.attempted is not None]
    return Watermarks(
        max(each.claimed for each in marks),
        min(each.settled for each in marks),
        max(attempted) if len(attempted) == len(marks) else None,
    ).as_data()


class _NoGroup:
    """No consumer group: this member is there for a moment, and nothing is to be assigned to it."""

    induced: frozenset[int] = frozenset()
    is_member = False

    def join(self) -> None: ...

    def leave(self) -> None: ...

    def poll(self) -> None: ...

    def close(self) -> None: ...


def repair(config: Config, *, dry_run: bool, timeout: float, log: logging.Logger) -> list[Correction]:
    """Return what must change, and change it unless it is a `dry_run`. Takes `timeout` seconds and a handover at most.

    Raises `NeliError` if a member leads one of the roles, if there is no leader topic, or if Kafka does not answer in
    time. Then nothing was changed, or, of several roles, only some: call it again.
    """
    wide = replace(config, roles=shard_roles(_roles_used(config, log)))
    for role in look(wide, "beat", log=log).roles:
        if role.leader is not None and (role.since is None or time.time() - role.since > SETTLED):
            raise NeliError(
                f"{printable(role.leader)} leads role {role.role} and serves it, so there is nothing to repair. "
                "To lower neli_shards, stop all beats first"
            )
    journal = KafkaJournal(wide, log=log)
    member = Member(wide, journal, _NoGroup(), clock=boottime, log=log)
    member.candidate = False
    states = [member.state(each) for each in wide.roles]

    def wanted() -> list[Correction]:
        return plan([state.payload.data for state in states], len(config.roles), now=time.time())

    try:
        end = time.monotonic() + timeout
        read = _step(member, lambda: member.caught_up, until=min(end, time.monotonic() + KNOWN))
        if dry_run and not read:
            raise NeliError(
                "what the records of the roles say cannot be known before a member leads the roles: the records have "
                "expired, or Kafka is slow; start the beats, or repair without --dry-run"
            )
        changes = wanted()
        if dry_run or (read and not changes):
            return changes
        member.candidate = True
        if not _step(
            member, lambda: all(each.grant.leading(boottime()) and each.payload.known for each in states), until=end
        ):
            led = [f"{found[0]} leads {each.role}" for each in states if (found := each.leader())]
            raise NeliError(
                f"the repair could not lead every role within {timeout:g} s ({'; '.join(led) or 'no member leads'}): "
                "stop the beats that serve a role, and try again"
            )
        changes = wanted()
        for change in changes:
            state = states[change.role]
            state.set_payload(state.grant.term or 0, change.data, now=True)
        sent = [(states[each.role], dict(each.data)) for each in changes]
        if not _step(
            member, lambda: all(each.payload.own and each.payload.data == data for each, data in sent), until=end
        ):
            raise NeliError(
                f"the records were not read back within {timeout:g} s: check `celery neli status`, and try again"
            )
        return changes
    finally:
        member.close()
        _step(member, lambda: member.closed, until=time.monotonic() + config.heartbeat_timeout)
        journal.close()


def _step(member: Member, done: Callable[[], bool], *, until: float) -> bool:
    """Turn the member until `done()`; return False if it took too long. Raises `NeliError` if the topic is unusable."""
    while not done():
        if time.monotonic() > until:
            return False
        for event in member.step(PAUSE):
            if isinstance(event, LeaderRevoked):
                member.state(event.role).drained(event.term)
        if member.topic_error is not None and not member.closing:
            raise NeliError(str(member.topic_error))
    return True


def _roles_used(config: Config, log: logging.Logger) -> int:
    """Return how many partitions of the leader topic may hold roles: those with records, and those that are set."""
    client_log = ClientLog(log, config.properties, one_shot=True)
    with closing(Reader(config, client_log, config.topic, reader_properties(config))) as reader:
        try:
            partitions = min(reader.partitions(ASK), SHARDS_MOST)
            used = [index for index in range(partitions) if reader.bounds(index, ASK)[1] > 0]
        except KafkaException as exc:
            raise client_log.failure(exc.args[0], config.topic) from None
    if not partitions:
        raise NeliError(
            f"there is no leader topic {config.topic}: no beat has started yet, so there is nothing to repair"
        )
    return min(max([len(config.roles), *(index + 1 for index in used)]), partitions)
