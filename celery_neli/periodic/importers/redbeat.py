"""What RedBeat keeps in Redis, read by its own code and with the app's settings of it. Writes nothing there."""

from __future__ import annotations

from typing import Any

from celery_neli.exceptions import NeliError
from celery_neli.periodic.importers import Found, Row, Source, left_out, of_entry

RUNNING = "a RedBeat holds its lock, and what it sends from now on is not carried over: stop it, then import"


def read(app: Any) -> Source:
    """Return all entries that RedBeat schedules. Blocks for Redis; raises `NeliError` if it does not answer, or the
    package is missing.
    """
    try:
        from redbeat.schedulers import RedBeatSchedulerEntry, ensure_conf, get_redis
        from redis.exceptions import RedisError
    except ImportError as exc:
        raise NeliError(f"RedBeat is not installed here ({exc}): install celery-redbeat") from None

    try:
        conf = ensure_conf(app)
        client = get_redis(app)
    except (ValueError, TypeError, KeyError) as exc:  # redis-py refuses the URL or the options
        raise NeliError(f"RedBeat's Redis cannot be reached: {exc}; set redbeat_redis_url") from None
    entries: list[Found | Row] = []
    try:
        # Its lock and its list of static entries have other keys.
        keys = sorted(
            key.decode() if isinstance(key, bytes) else key for key in client.zrange(conf.schedule_key, 0, -1)
        )
        running = bool(conf.lock_key and client.exists(conf.lock_key))
        for key in keys:
            name = key.removeprefix(conf.key_prefix)
            try:
                entry = RedBeatSchedulerEntry.from_key(key, app=app)
            except KeyError:  # it was deleted by hand: RedBeat drops it, too
                continue
            except RedisError:
                raise
            except Exception as exc:  # noqa: BLE001 - what is stored may raise anything; the user sees it
                entries.append(left_out(name, NeliError(f"RedBeat itself cannot read it: {exc!r}")))
            else:
                entries.append(of_entry(entry, name=name, paused=not getattr(entry, "enabled", True)))
    except RedisError as exc:
        raise NeliError(f"RedBeat's Redis does not answer: {exc}") from None
    return Source(what="RedBeat", entries=entries, warning=RUNNING if running else None)
