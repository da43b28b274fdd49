"""The seam between a role and what serves it: a `Host` runs one kind of Celery scheduler for as long as a term lasts.

There are two kinds: `celery_neli.beat.wrapped.host` for any Celery scheduler, built for each term and closed at its
end, and `celery_neli.beat.replicated.host` for our own, which stands by between terms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from datetime import datetime

    from celery_neli.beat.tenure import Tenure

__all__ = ["Host", "NotReady"]


class NotReady(Exception):
    """The host lacks something from outside to begin a term, and says what; it may have it in a moment."""


class Host(Protocol):
    """Serves one role, by a scheduler. The thread that ticks calls it, and it may raise whatever a scheduler raises."""

    #: The scheduler, also while it stands by; None while there is none.
    scheduler: Any
    #: True if the scheduler outlives its term, so that a term in which it failed is not begun again.
    stands_by: bool

    def prepare(self) -> bool:
        """Get ready for a term while another beat leads; return False if more of that is left to do at once."""

    def begin(self, tenure: Tenure, *, first_seen: datetime) -> bool:
        """Begin to serve a term; return False if that is not possible yet.

        Args:
            tenure: The term; every message asks it.
            first_seen: Until when the entries are known to have been served (UTC).

        Raises:
            NotReady: Something is missing that may come.
        """

    def tick(self) -> float:
        """Send what is due; return the seconds until the next call. Raises `LeaseEnded` in the middle of an entry."""

    def end(self, *, held: bool) -> None:
        """Stop serving. If the lease is still ``held``, write what a successor needs to know; otherwise write nothing.

        Also called after a `begin` that raised.
        """

    @property
    def stuck(self) -> bool:
        """True if messages are on their way and nothing comes of them."""
