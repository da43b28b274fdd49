"""All entries of the schedule, one by one, by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from celery_neli.exceptions import ConfigurationError
from celery_neli.periodic.call import plain
from celery_neli.periodic.editor import ScheduleEditor
from celery_neli.periodic.view import Periodic, view_of
from celery_neli.schedule_topic.codec import ENTRY, STATE, Kind
from celery_neli.schedule_topic.values import shown


def listed(
    editor: ScheduleEditor,
    *,
    prefix: Any = "",
    tag: Any = None,
    limit: Any = None,
    after: Any = None,
    owner: Any = None,
) -> Iterator[Periodic]:
    """Yield entries by name: see `periodic.list`. The topic is read before this returns; entries are decoded one by
    one, and what was decoded is dropped.
    """
    prefix, tag, after, owner = map(plain, ("" if prefix is None else prefix, tag, after, owner))
    for field, value in {"prefix": prefix, "tag": tag, "after": after, "owner": owner}.items():
        if value is not None and not isinstance(value, str):
            raise ConfigurationError(f"{field} = {shown(value)}: give a string")
    if limit is not None and (type(limit) is not int or limit < 1):
        raise ConfigurationError(f"limit = {shown(limit)}: give a whole number above 0, or None for all")

    def keep(name: str) -> bool:
        return name.startswith(prefix) and (after is None or name > after)

    records = dict(editor.read(keep))
    names = [name for kind, name in records if kind == ENTRY]
    static = {name for name in (*editor.static, *editor.refused) if keep(name)}
    return _listed(editor, records, sorted(static.union(names)), tag, limit, owner)


def _listed(
    editor: ScheduleEditor, records: dict[tuple[Kind, str], bytes], names: list[str], tag: Any, limit: Any, owner: Any
) -> Iterator[Periodic]:
    yielded = 0
    for name in names:
        if yielded == limit:
            return
        entries: tuple[tuple[Kind, str], ...] = (ENTRY, name), (STATE, name)
        own = {entry: records.pop(entry) for entry in entries if entry in records}
        if not editor.know(name, own):
            continue
        found = view_of(editor, name)
        if (tag is None or tag in found.tags) and (owner is None or owner == found.owner):
            yielded += 1
            yield found
