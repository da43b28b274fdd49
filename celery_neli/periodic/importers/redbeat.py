"""What RedBeat keeps in Redis, read through its own entries and the app's own settings of it. Writes nothing there."""

from __future__ import annotations

from typing import Any

from celery_neli.exceptions import NeliError
from celery_neli.periodic.importers.run import Found, LeftOut, Source, of_entry

__all__ = ["read"]

RUNNING = "a RedBeat holds its lock, and what it sends from now on is not carried over: stop it, then import"


def read(app: Any) -> Source:
    """All entries that RedBeat schedules. Its lock and its list of static entries are no entries. Blocks for Redis.

    :raises NeliError: the package is missing, or Redis does not answer.
    """
    try:
        from redbeat.schedulers import RedBeatSchedulerEntry, ensure_conf, get_redis
        from redis.exceptions import RedisError
    except ImportError as exc:
        raise NeliError(f"RedBeat is not installed here ({exc}): install celery-redbeat") from None
    try:
        conf = ensure_conf(app)
        client = get_redis(app)
    except (ValueError, TypeError, KeyError) as exc:  # of redis-py, for the URL and the options
        raise NeliError(f"RedBeat's Redis cannot be reached: {exc}; set redbeat_redis_url") from None
    try:
        keys = client.zrange(conf.schedule_key, 0, -1)
        running = bool(conf.lock_key and client.exists(conf.lock_key))
        entries = [
            _entry(RedBeatSchedulerEntry, key, conf.key_prefix, app)
            for key in sorted(each.decode() if isinstance(each, bytes) else each for each in keys)
        ]
    except RedisError as exc:
        raise NeliError(f"RedBeat's Redis does not answer: {exc}") from None
    found = [each for each in entries if each is not None]
    return Source(what="RedBeat", entries=found, warning=RUNNING if running else None)


def _entry(kind: Any, key: str, prefix: str, app: Any) -> Found | LeftOut | None:
    from redis.exceptions import RedisError

    try:
        entry = kind.from_key(key, app=app)
    except KeyError:  # deleted by hand: RedBeat drops it, too
        return None
    except RedisError:
        raise
    except Exception as exc:  # noqa: BLE001 - whatever is stored there; told to the user
        return LeftOut(name=key.removeprefix(prefix), why=f"RedBeat itself cannot read it: {exc!r}")
    return of_entry(entry, name=key.removeprefix(prefix), paused=not getattr(entry, "enabled", True))
