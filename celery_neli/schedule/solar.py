"""The slots of Celery's solar events.

Celery 5.5 and 5.6 raise a TypeError where the event does not come on that day, in the polar night or the polar day, and
Celery 5.7 takes the end of a search that found nothing for the event. Here the search goes on to the day of the event.
Pure; nothing blocks.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

__all__ = ["next_event"]

#: Every event comes at least once a year, wherever it comes at all.
_DAYS = 400
_EPOCH, _SECOND = datetime(1970, 1, 1, tzinfo=timezone.utc), timedelta(seconds=1)


def next_event(when: Any, after: datetime) -> datetime | None:
    """Return the first event (UTC) of the solar schedule ``when`` after ``after`` (aware).

    None if it does not come within a year or so. The moment of a sunrise is known to the millisecond at best: slots are
    whole seconds, rounded up, as if one had asked the schedule once a second.
    """
    ephem: Any = when.ephem
    place, sun = when.cal.copy(), ephem.Sun()  # an observer is changed by asking it
    start = place.date = ephem.Date(after.astimezone(timezone.utc).replace(tzinfo=None))
    options = {"use_center": True} if when.use_center else {}
    for _ in range(_DAYS):
        try:
            found = getattr(place, when.method)(sun, start=start, **options)
        except ephem.CircumpolarError:
            # Not on this day. The next one begins when the sun is lowest.
            start = place.next_antitransit(sun, start=start)
        else:
            moment = found.datetime().replace(tzinfo=timezone.utc)
            slot: datetime = -(-(moment - _EPOCH) // _SECOND) * _SECOND + _EPOCH
            return slot if slot > after else None
    return None
