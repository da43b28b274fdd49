"""When the message of an entry expires: `neli_expires` counts from its slot, Celery's `expires` from the sending."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from celery_neli.schedule.zones import to_utc

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import tzinfo

__all__ = ["expires_of"]


def expires_of(options: Mapping[str, Any], slot: datetime | None, zone: tzinfo) -> Any:
    """Return what a message has as its `expires`: an aware datetime, seconds from the sending, or None.

    Args:
        options: those of its entry, checked.
        slot: the one that the message is sent for; None if there is none, then `neli_expires`, too, counts from the
            sending.
        zone: the one of a time without an offset. Celery takes it for UTC when it sends, and for the worker's
            local time when it runs the task.
    """
    seconds = options.get("neli_expires")
    if seconds is not None:
        return seconds if slot is None else slot + timedelta(seconds=seconds)
    expires = options.get("expires")
    at = expires
    if isinstance(at, str):
        try:
            at = datetime.fromisoformat(at)
        except ValueError:
            return expires  # Celery reads it, or says what is wrong with it
    return to_utc(zone, at) if isinstance(at, datetime) and at.utcoffset() is None else expires
