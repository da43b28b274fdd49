"""How many runtime entries there may be: `neli_entry_limit`, checked by the process that adds some."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

from celery_neli.config import setting
from celery_neli.exceptions import NeliError, RecordError
from celery_neli.periodic.store import Records
from celery_neli.schedule_topic import codec
from celery_neli.schedule_topic.values import shown


def check_limit(
    app: Any, added: Collection[str], read: Callable[..., Records], *, removed: Collection[str] = ()
) -> None:
    """Raise `NeliError` if there would be too many entries with the names ``added``, without those ``removed``.

    An entry counts for the longest prefix of `neli_entry_limit` that its name begins with. ``read`` returns the records
    of the names to keep; it reads all of the topic, and blocks.
    """
    value = setting(app, "neli_entry_limit")
    limits: Mapping[str, int] = value if isinstance(value, Mapping) else {"": value}
    prefixes = sorted(limits, key=len, reverse=True)

    def limited_by(name: str) -> str | None:
        return next((each for each in prefixes if name.startswith(each)), None)

    limiting = {each for name in added if (each := limited_by(name)) is not None}
    if not limiting:
        return
    records = read(keep=lambda name: limited_by(name) in limiting)
    there = {name for (kind, name), value in records.items() if kind == codec.ENTRY and _is_entry(value)}
    there.difference_update(removed)
    new, counts = {*added} - there, Counter(map(limited_by, there))
    for prefix in sorted(limiting):
        more = sum(limited_by(name) == prefix for name in new)
        if more and counts[prefix] + more > limits[prefix]:
            of = f" for names that begin with {shown(prefix)}" if prefix else ""
            raise NeliError(
                f"neli_entry_limit = {limits[prefix]}{of}: there are {counts[prefix]} entries, and {more} more would"
                " be too many. Nothing was written; remove some, or raise the limit"
            )


def _is_entry(value: bytes) -> bool:
    try:
        found = codec.decode_definition(value)
    except RecordError:  # a newer release wrote it
        return True
    return not (found.static or found.removed)
