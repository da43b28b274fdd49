"""Who asks for a role, and when (R10): the member to which the group has assigned it, while another one leads it.

The group spreads the roles over the members; a leader stays where it is when the group moves its role, for a hand-over
costs a drain. Without more, roles pile up on those that survived the others. So the member that should lead asks the
holder, by a request in the journal, once both the assignment and the term have stood for `rebalance_after`: while
members come and go, and assignments move to and fro, nobody asks.
"""

from __future__ import annotations

from celery_neli.election.lease import FOREVER, Lease
from celery_neli.election.records import Record

PATIENCE = 16
"""A member that gave the role up by itself, soon after it had it, waits for up to so many times `rebalance_after`."""


class Rebalance:
    """One member's wish for one role. `after`: seconds; `FOREVER`: never ask. For the member's thread."""

    def __init__(self, after: float) -> None:
        self._after = self._wait = after
        self._term: int | None = None  # the term to be ended
        self._since = FOREVER  # since when nothing has changed, or since the last request for it

    def turn(self, lease: Lease, now: float, *, awake: bool) -> Record | None:
        """The request that is due at `now`, to be sent; None: nothing to ask for, or not yet. To be called with every
        step; `awake`: the member saw what happened since the last one.
        """
        wishes = awake and lease.induced and lease.candidate and lease.led_by_another
        term = lease.term if wishes else None
        if term != self._term:
            self._term, self._since = term, now
        if term is None or now - self._since < self._wait:
            return None
        self._since = now
        return lease.ask()

    def gave_up(self, led: float) -> None:
        """This member resigned the role by itself, not for another's request, having led it for `led` seconds.

        A member that fails at its work whenever it leads must not take the role from a sound one again and again.
        """
        self._wait = self._after if led > self._wait else min(2 * self._wait, PATIENCE * self._after)
