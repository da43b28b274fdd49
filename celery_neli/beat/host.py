"""The seam between a role and what serves it: a `Host` runs one kind of Celery scheduler for as long as a term lasts.

There are two kinds: `celery_neli.beat.wrapped.host` for any Celery scheduler, built for each term and closed at its
end, and `celery_neli.beat.replicated.host` for our own, which stands by between terms.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, Protocol

import celery.beat
from celery.utils.imports import load_extension_class_names, symbol_by_name

from celery_neli.exceptions import ConfigurationError
from celery_neli.printable import shown

if TYPE_CHECKING:
    from datetime import datetime

    from celery_neli.beat.tenure import Tenure

__all__ = ["DEFAULT", "Host", "NotReady", "derives_from", "is_replicated", "resolve"]

#: The scheduler that a beat runs if `neli_scheduler` names none.
DEFAULT = "celery_neli.ReplicatedScheduler"
REMEDY = f"give a class or its path, such as {DEFAULT!r}, or leave it out"
#: The schedulers that a misspelt name may have meant.
KNOWN = (
    DEFAULT,
    "celery.beat.Scheduler",
    "celery.beat.PersistentScheduler",
    "django_celery_beat.schedulers:DatabaseScheduler",
    "redbeat.RedBeatScheduler",
)


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


def resolve(name: Any) -> type[Any]:
    """Return the scheduler class that ``neli_scheduler`` means: a dotted path, an alias (entry point), or the class.

    Raises:
        ConfigurationError: It is not a scheduler, or it is `celery_neli.Scheduler` itself.
    """
    try:
        aliases = dict(load_extension_class_names("celery.beat_schedulers"))
        cls = symbol_by_name(DEFAULT if name is None else name, aliases=aliases)
    except Exception as exc:  # importing runs the user's modules
        close = difflib.get_close_matches(str(name), KNOWN, n=1, cutoff=0.8)
        hint = f"did you mean {close[0]!r}?" if close else REMEDY
        raise ConfigurationError(f"neli_scheduler = {shown(name)} cannot be imported: {shown(exc)}; {hint}") from exc
    if not (isinstance(cls, type) and issubclass(cls, celery.beat.Scheduler)):
        raise ConfigurationError(f"neli_scheduler = {shown(name)} is no subclass of celery.beat.Scheduler; {REMEDY}")
    if derives_from(cls, "celery_neli.beat.scheduler", "Scheduler"):
        raise ConfigurationError(
            f"neli_scheduler = {shown(name)} is celery-neli's own scheduler: name the one that it is to lead, such as"
            f" 'celery.beat.Scheduler' (beat_scheduler is the setting for celery-neli's)"
        )
    return cls


def is_replicated(cls: type[Any]) -> bool:
    """Return True if ``cls`` is `celery_neli.ReplicatedScheduler` or derives from it."""
    return derives_from(cls, "celery_neli.beat.replicated.standalone", "ReplicatedScheduler")


def derives_from(cls: type[Any], module: str, name: str) -> bool:
    """Return True if ``module.name`` is among the bases of ``cls``. Imports nothing."""
    return any(base.__module__ == module and base.__name__ == name for base in cls.__mro__)
