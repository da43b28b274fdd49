"""Changes of the runtime schedule that somebody else's overtook: what is said of them, and what is left to write."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timezone
from typing import Any, Final

from celery_neli.exceptions import Conflict, NeliError
from celery_neli.periodic.store import Known, Records
from celery_neli.schedule_topic.codec import ENTRY, Definition, encode_definition, repaired
from celery_neli.schedule_topic.write import Write

SHOWN: Final = 3  # conflicts that an error describes


def conflict(known: Known, name: str, expected: str | None) -> Conflict:
    """Return the error for an entry that has another version than the one that was expected; None: than any."""
    found = known.definitions.get(name)
    there = found or known.removed.get(name)
    last = there.changes[-1] if there is not None and there.changes else None
    who = f" ({last.by} made the last change, at {utc(last.at)}: {last.what})" if last is not None else ""
    if expected is None:
        return Conflict(f"entry {name!r} is changed by others all the time{who}", (name,))
    wanted = f"version {expected!r} was expected" if expected else "none was expected"
    if found is not None:
        return Conflict(f"entry {name!r} has version {found.version!r}, and {wanted}{who}", (name,))
    return Conflict(f"there is no entry {name!r}, and {wanted}{who}", (name,))


def together(late: Mapping[str, NeliError], *, nothing: bool) -> NeliError:
    """Return one error for entries that were not changed; `nothing`: nor was any other."""
    errors = [*late.values()]
    said = "; ".join(str(error) for error in errors[:SHOWN])
    more = f"; and {len(errors) - SHOWN} more" if len(errors) > SHOWN else ""
    return Conflict(f"{said}{more}: {'nothing was changed' if nothing else 'all others were changed'}", tuple(late))


def write_again(
    known: Callable[[Collection[str]], Known], write: Callable[[list[Write]], Collection[str]], names: Collection[str]
) -> None:
    """Write the definitions that count again, over records of ours that are void: of each entry, Kafka keeps the last
    record only. `known` reads what is there. The beat that leads does it, too, if this fails.
    """
    while names:
        here, writes = known(names), []
        for name in names:
            found = here.definitions.get(name) or here.removed.get(name)
            if found is not None and found.version:
                writes.append(Write(ENTRY, name, encode_definition(repaired(found)), found.version))
        void = write(writes)
        names = [each.name for each in writes if each.version in void]


def utc(seconds: float) -> str:
    """Return Unix seconds as a time in UTC."""
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M:%S}Z"


def check_room(app: Any, known: Known, made: Mapping[str, Definition], read: Callable[..., Records]) -> None:
    """Raise `NeliError` if the definitions that are `made` add more entries than `neli_entry_limit` lets in. Blocks
    while it counts, and counts only if there are new entries by what is known.
    """
    there = {name for name, old in known.definitions.items() if not (old.static or old.removed)}
    added = [name for name, new in made.items() if not (new.static or new.removed or name in there)]
    if added:
        from celery_neli.periodic.limits import check_limit  # only who has a limit loads it

        check_limit(app, added, read, removed=[name for name, new in made.items() if new.removed])
