"""How long a member stands back from a role that it led and could not serve.

A member whose settings contradict the records, whose work cannot begin, or whose broker refuses what the role needs
takes the lead, fails and resigns at once. Where all members are alike, the role would pass between them several times
a second and for good. So each claims again only after a pause, which doubles with each failure in a row.
"""

from __future__ import annotations

from celery_neli.election.lease import NEVER

__all__ = ["FIRST", "MOST", "StandBack"]

FIRST, MOST = 1.0, 60.0
"""Seconds: the first pause, and the longest."""


class StandBack:
    """The pauses of one member in one role, on the member's clock. For the member's thread.

    `forgiven`: a term that lasted longer than so many seconds counts as served.
    """

    def __init__(self, forgiven: float) -> None:
        self._forgiven = forgiven
        self._pause = 0.0
        self._term: int | None = None
        self.until = NEVER
        """Until when the member does not claim the role."""

    def failed(self, now: float, *, term: int | None, led: float) -> None:
        """Note that the member cannot serve the role, which it has led in `term` for `led` seconds (None: it does not
        lead). Of one term, only the first failure counts.
        """
        if term is not None and term == self._term:
            return
        self._term = term
        in_a_row = led <= self._forgiven and now - self.until <= MOST
        self._pause = min(2 * self._pause, MOST) if in_a_row else FIRST
        self.until = now + self._pause
