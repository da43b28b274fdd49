"""Ask a leader to hand over, through the leader topic (`celery neli resign`)."""

from __future__ import annotations

import secrets
import time
from contextlib import closing
from typing import TYPE_CHECKING

from celery_neli.election.records import Record, encode
from celery_neli.exceptions import NeliError
from celery_neli.kafka.client_log import ClientLog
from celery_neli.kafka.properties import producer_properties
from celery_neli.kafka.writer import Writer
from celery_neli.status import ElectionStatus, RoleStatus, look

if TYPE_CHECKING:
    import logging

    from celery_neli.config import Config

PAUSE = 0.1  # seconds between two looks at who leads


def hand_over(
    config: Config, election: str, *, role: str | None, to: str | None, timeout: float, log: logging.Logger
) -> tuple[RoleStatus, RoleStatus, float]:
    """Ask the leader of `role` to resign, in favour of the member named `to` if given; wait for the next leader.

    Blocks for up to `timeout` seconds. Returns the role before and after, and the seconds from request to new leader.

    Raises:
        NeliError: the role or member is unknown, no member leads, or no other member took over in time.
    """
    if role is None:
        if len(config.roles) > 1:
            raise NeliError(
                f"the {election} election has several roles; name one with --role: {', '.join(config.roles)}"
            )
        role = config.roles[0]
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
    if to is not None and to not in status.known:
        raise NeliError(_unknown(status, to))
    gone = status.members is not None and not any(each.answers for each in status.members if each.name == to)
    if to is not None and gone:
        raise NeliError(f"{to} is still in the {election} group, but does not answer; name another member")
    if to == before.leader:
        raise NeliError(f"{to} already leads {election} role {role}")
    began = time.monotonic()
    _send(config, config.roles.index(role), role, to, before.term, log)
    while time.monotonic() - began < timeout:
        for each in look(config, election, log=log).roles:
            if each.role == role and each.leader is not None and each.term != before.term:
                return before, each, time.monotonic() - began
        time.sleep(PAUSE)
    raise NeliError(
        f"{before.leader} was asked to hand over, but no other member led {election} role {role} within {timeout:g} s"
    )


def _unknown(status: ElectionStatus, to: str) -> str:
    names = ", ".join(status.known) or "none"
    if status.members is not None:
        return f"the {status.election} election has no member {to!r}; its members: {names}"
    return (
        f"the {status.election} election shows no sign of a member {to!r}, and Kafka does not describe the group (the "
        f"embedded one cannot); members that wrote recently: {names}. Leave out --to to hand over to any of them"
    )


def _send(config: Config, partition: int, role: str, to: str | None, term: int | None, log: logging.Logger) -> None:
    record = Record(kind="request", member=f"request/{secrets.token_hex(6)}", seq=0, lease=0.0, to=to, term=term)
    client_log = ClientLog(log, config.properties, one_shot=True)
    with closing(Writer(config, client_log, config.topic, producer_properties(config))) as writer:
        reason = writer.send_all([(partition, role, encode(record))], config.heartbeat_timeout)
    if reason:
        raise NeliError(f"the request could not be sent: {reason}")
