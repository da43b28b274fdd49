"""The log lines of leadership: one for each transition, with stable keys."""

from __future__ import annotations

import logging

from celery_neli.config import Config
from celery_neli.election.member import Member
from celery_neli.election.role_state import LeaderAcquired, LeaderEvent, LeaderFenced


class Report:
    """Writes to `log`, whose calls must not block: it works on the thread that renews."""

    def __init__(self, config: Config, log: logging.Logger) -> None:
        self._config, self._log = config, log
        self._leaders: dict[str, tuple[str, int]] = {}  # role -> name and term that were told last

    def change(self, event: LeaderEvent) -> None:
        """This member's own leadership changed."""
        values = event.role, event.term, self._config.name, self._config.group
        if isinstance(event, LeaderFenced):
            line = "leadership fenced role=%s term=%d name=%s group=%s reason=%r"
            self._log.warning(line, *values, event.reason)
        elif isinstance(event, LeaderAcquired):
            self._log.info("leadership acquired role=%s term=%d name=%s group=%s", *values)
        else:
            self._log.info("leadership revoked role=%s term=%d name=%s group=%s", *values)

    def standby(self, member: Member) -> None:
        """Say which leader this member stands by for, whenever that changes, so that its log tells a standby from a
        process that hangs. Only of a leader that is heard: the last record of a log may be of one long gone.
        """
        for role in self._config.roles:
            leader = member.leader(role)
            if leader is not None and leader != self._leaders.get(role) and member.hears(role):
                self._leaders[role] = leader
                if member.grant(role).term != leader[1]:
                    line = "standing by role=%s leader=%s term=%d name=%s group=%s"
                    self._log.info(line, role, *leader, self._config.name, self._config.group)
