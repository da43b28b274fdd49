"""Which shard of a beat election an entry belongs to, and how one shard more takes over its share.

Linear hashing, so that one shard more splits one shard only. A shard is the role of the same place
(`config.shard_roles`). The hash is of the entry's name alone, and is the same in every process and release. Pure.

Beats may be started with a higher number while others run with the lower one. So the records of each role say which
number its leader uses. A new shard begins when the shard that it is split from is led by that number, and with the
watermarks that were found there when it changed: what was published or claimed until then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from zlib import crc32

from celery_neli.beat.replicated.claims import Watermarks
from celery_neli.exceptions import ConfigurationError
from celery_neli.schedule_topic.codec import RANK_MOST
from celery_neli.settings import SHARDS_MOST

if TYPE_CHECKING:
    from celery_neli.election.role_state import Payload

__all__ = ["Beginning", "begin", "owner", "parent"]

#: In the records of a beat's roles: how many shards the leader uses; the watermarks that new shards begin with; what is
#: to be added to a term for the epoch of its states.
SHARDS, SPLIT, BASE = "shards", "split", "base"


def owner(name: str, shards: int) -> int:
    """Return the shard (from 0) of the entry ``name`` where there are so many shards."""
    if shards == 1:
        return 0
    size = 1 << (shards - 1).bit_length()
    shard = crc32(name.encode("utf-8", "surrogatepass")) & (size - 1)
    return shard if shard < shards else shard - size // 2


def parent(shard: int) -> int:
    """Return the shard that ``shard`` (above 0) is split from, which owned its entries before there were so many."""
    return shard & ~(1 << (shard.bit_length() - 1))


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a term of a shard begins with: the watermarks that it found, and what its records say besides."""

    marks: Watermarks | None
    data: Mapping[str, Any]


def begin(shard: int, shards: int, payload: Callable[[int], Payload], *, now: float) -> Beginning | None:
    """Return what a leader of ``shard``, one of ``shards``, begins with at ``now`` (Unix seconds).

    ``payload`` returns the last payload of each shard's role. Returns None while the shard that it is split from still
    serves its entries. Raises `ConfigurationError` if the entries were spread over more shards already.
    """
    found = payload(shard).data or {}
    before = _count(found)
    if before > shards:
        raise ConfigurationError(
            f"neli_shards = {shards}, but the schedule is spread over {before} already: set neli_shards = {before}; "
            f"or, if it is to be {shards} from now on, stop the beats with another number and run `celery neli repair`"
        )
    marks, split = Watermarks.of(found, now=now), _split(found, shard)
    if marks is None and shard > 0:
        of_parent = payload(parent(shard))
        if not of_parent.known or _count(of_parent.data or {}) <= shard:
            return None
        marks = Watermarks.of(_split(of_parent.data or {}, parent(shard)).get(str(shard)), now=now)
    if marks is not None:
        for child in range(max(before, shard + 1), shards):
            if parent(child) == shard:
                split[str(child)] = marks.as_data()
    more: dict[str, Any] = {SHARDS: shards}
    if split:
        more[SPLIT] = split
    if _whole(found.get(BASE), most=RANK_MOST) > 0:
        more[BASE] = found[BASE]
    return Beginning(marks, more)


def _count(data: Mapping[str, Any]) -> int:
    return _whole(data.get(SHARDS, 1 if data else 0), most=SHARDS_MOST)


def _whole(value: Any, *, most: int) -> int:
    """Return the number, or 0 for anything but a number from 0 to `most`: the log may hold anything."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most else 0


def _split(data: Mapping[str, Any], shard: int) -> dict[str, Any]:
    """Return the watermarks that shards split from `shard` begin with, and nothing else that may stand there."""
    value = data.get(SPLIT)
    found = value if isinstance(value, dict) else {}
    children = (each for each in range(shard + 1, SHARDS_MOST) if parent(each) == shard)
    marks = {str(child): Watermarks.of(found.get(str(child))) for child in children}
    return {child: each.as_data() for child, each in marks.items() if each is not None}
