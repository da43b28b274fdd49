"""Make the records of the beats' roles fit `neli_shards` again (`celery neli repair`).

Beats refuse to serve if the records name more shards than they have: entries of the others would run nowhere, or twice.
That is so after `neli_shards` was lowered, and after a record was forged or garbled. The repair is a member of the
election for a moment: it leads every role, which is impossible while another member leads it, and hands them over with
records that fit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from confluent_kafka import KafkaException

from celery_neli.beat.replicated.claims import Watermarks
from celery_neli.beat.replicated.term import BASE, SHARDS, parent
from celery_neli.config import shard_roles
from celery_neli.election.lease import boottime
from celery_neli.election.member import Member
from celery_neli.election.role_state import LeaderRevoked
from celery_neli.exceptions import NeliError
from celery_neli.kafka.client_log import ClientLog
from celery_neli.kafka.journal import KafkaJournal
from celery_neli.kafka.properties import reader_properties
from celery_neli.kafka.reader import Reader
from celery_neli.printable import printable
from celery_neli.settings import SHARDS_MOST
from celery_neli.status import look

if TYPE_CHECKING:
    import logging

    from celery_neli.config import Config

__all__ = ["Correction", "plan", "repair"]

SETTLED = 5.0
"""Seconds. A member that has led for longer can serve its role."""
KNOWN = 5.0
"""Seconds for reading who leads. If the records have expired, that is not known before a member leads."""
ASK = 2.0  # seconds for one question
PAUSE = 0.05  # seconds that a turn of the member may wait


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
    named = [_shards_of(each) for each in found]
    if all(isinstance(each, int) and not isinstance(each, bool) and each <= shards for each in named):
        return []
    changes = []
    for role, data in enumerate(found):
        carried: dict[str, Any] = {SHARDS: shards}
        what = "its entries are distributed among the others"
        if role < shards:
            heirs = [index for index in range(len(found)) if _heir(index, shards) == role]
            marks = _together([Watermarks.of(found[index], now=now) for index in heirs])
            carried |= {} if marks is None else marks.as_data()
            what = "its marks stay" if len(heirs) < 2 else f"with the marks of {len(heirs)} roles"
            if isinstance(base := (data or {}).get(BASE), int):
                carried[BASE] = base
        if data is not None or role < shards:
            changes.append(Correction(role=role, data=carried, what=f"shards {named[role]!r:.40} -> {shards}, {what}"))
    return changes


def repair(config: Config, *, dry_run: bool, timeout: float, log: logging.Logger) -> list[Correction]:
    """Return what must change, and change it unless it is a `dry_run`.

    Blocks for up to `timeout` seconds and a hand-over.

    Raises:
        NeliError: a member leads one of the roles, there is no leader topic, or Kafka does not answer in time. Then
            nothing was changed, or, of several roles, only some: call it again.
    """
    wide = replace(config, roles=shard_roles(_roles_used(config, log)))
    _refuse_led(wide, log)
    journal = KafkaJournal(wide, log=log)
    member = Member(wide, journal, _NoGroup(), clock=boottime, log=log)
    member.candidate = False
    try:
        end = time.monotonic() + timeout
        read = _step(member, lambda: member.caught_up, until=min(end, time.monotonic() + KNOWN))
        shards, roles = len(config.roles), wide.roles
        if dry_run and not read:
            raise NeliError(
                "what the records of the roles say cannot be known before a member leads the roles: the records have "
                "expired, or Kafka is slow; start the beats, or repair without --dry-run"
            )
        changes = plan([member.state(role).payload.data for role in roles], shards, now=time.time())
        if dry_run or (read and not changes):
            return changes
        member.candidate = True
        if not _step(member, lambda: all(_leads(member, role) for role in roles), until=end):
            led = [f"{leader[0]} leads {role}" for role in roles if (leader := member.state(role).leader()) is not None]
            raise NeliError(
                f"the repair could not lead every role within {timeout:g} s ({'; '.join(led) or 'no member leads'}): "
                "stop the beats that serve a role, and try again"
            )
        changes = plan([member.state(role).payload.data for role in roles], shards, now=time.time())
        for change in changes:
            role = roles[change.role]
            state = member.state(role)
            state.set_payload(change.data, state.grant.term or 0)
            state.beat_now(state.grant.term or 0)
        if not _step(member, lambda: all(_carries(member, roles[each.role], each.data) for each in changes), until=end):
            raise NeliError(
                f"the records were not read back within {timeout:g} s: check `celery neli status`, and try again"
            )
        return changes
    finally:
        member.close()
        _step(member, lambda: member.closed, until=time.monotonic() + config.heartbeat_timeout)
        journal.close()


class _NoGroup:
    """No consumer group: this member is there for a moment, and nothing is to be assigned to it."""

    induced: frozenset[int] = frozenset()

    def join(self) -> None: ...

    def leave(self) -> None: ...

    def poll(self) -> None: ...

    def close(self) -> None: ...


def _step(member: Member, done: Callable[[], bool], *, until: float) -> bool:
    """Turn the member until `done()`; return False if it took too long. Raises `NeliError` if the topic is unusable."""
    while not done():
        if time.monotonic() > until:
            return False
        for event in member.step(PAUSE):
            if isinstance(event, LeaderRevoked):
                member.state(event.role).drained(event.term)
        if member.trouble is not None and not member.closing:
            raise NeliError(str(member.trouble))
    return True


def _leads(member: Member, role: str) -> bool:
    state = member.state(role)
    return state.grant.leading(boottime()) and state.payload.known


def _carries(member: Member, role: str, data: Mapping[str, Any]) -> bool:
    payload = member.state(role).payload
    return payload.own and dict(payload.data or {}) == dict(data)


def _refuse_led(config: Config, log: logging.Logger) -> None:
    for each in look(config, "beat", log=log).roles:
        if each.leader is not None and (each.since is None or time.time() - each.since > SETTLED):
            raise NeliError(
                f"{printable(each.leader)} leads role {each.role} and serves it, so there is nothing to repair. "
                "To lower neli_shards, stop all beats first"
            )


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


def _shards_of(data: Mapping[str, Any] | None) -> Any:
    return 0 if not data else data.get(SHARDS, 1)


def _heir(role: int, shards: int) -> int:
    while role >= shards:
        role = parent(role)
    return role


def _together(found: Sequence[Watermarks | None]) -> Watermarks | None:
    """Return the marks of several roles as those of one: in doubt for one is in doubt, settled for all is settled."""
    marks = [each for each in found if each is not None]
    if not marks:
        return None
    tried = [each.attempted for each in marks]
    return Watermarks(
        max(each.claimed for each in marks),
        min(each.settled for each in marks),
        None if None in tried else max(each for each in tried if each is not None),
    )
