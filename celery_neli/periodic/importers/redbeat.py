"""What RedBeat keeps in Redis, read by its own code and with the app's settings of it. Writes nothing there."""

from __future__ import annotations

from typing import Any

from celery_neli.exceptions import NeliError
from celery_neli.periodic.importers import Found, Row, Source, found_or_left_out, left_out, seconds

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
                entries.append(of_entry(entry, name))
    except RedisError as exc:
        raise NeliError(f"RedBeat's Redis does not answer: {exc}") from None
    return Source(what="RedBeat", entries=entries, warning=RUNNING if running else None)


def of_entry(entry: Any, name: str) -> Found | Row:
    """Return an entry of RedBeat, which calls it ``name``, as `Found`; and a row for any other object."""
    return found_or_left_out(
        name,
        lambda: Found(
            name=entry.name,
            task=entry.task,
            schedule=entry.schedule,
            args=list(entry.args or ()),
            kwargs=entry.kwargs or {},
            options=entry.options or {},
            paused=not getattr(entry, "enabled", True),
            last=seconds(entry.last_run_at),
            runs=entry.total_run_count or 0,
        ),
    )
