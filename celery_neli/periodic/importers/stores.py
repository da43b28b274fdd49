"""What other schedulers keep in stores: RedBeat in Redis, django-celery-beat in a database. Writes nothing there.

With Django's `USE_TZ = False`, the times in the database have no offset, and are in Django's `TIME_ZONE`. Only the last
run is in UTC if `DJANGO_CELERY_BEAT_TZ_AWARE` is False, because DatabaseScheduler writes it that way.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any

from celery.schedules import crontab, schedule, solar

from celery_neli.exceptions import NeliError
from celery_neli.periodic.importers import Found, Row, Source, found_or_left_out, left_out, seconds
from celery_neli.schedule.crontabs import offset_at, to_utc
from celery_neli.schedule.slots import next_slot, once

REDBEAT_WARNING = "a RedBeat holds its lock, and what it sends from now on is not carried over: stop it, then import"
DATABASE_WARNING = "a DatabaseScheduler that runs goes on sending, and is not carried over: stop it, then import"
_LEAST = timedelta(microseconds=1)


def read_redbeat(app: Any) -> Source:
    """Return all entries that RedBeat schedules, read by its own code with the app's settings of it. Blocks for Redis;
    raises `NeliError` if it does not answer, or the package is missing.
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
                entries.append(of_redbeat(entry, name))
    except RedisError as exc:
        raise NeliError(f"RedBeat's Redis does not answer: {exc}") from None
    return Source(what="RedBeat", entries=entries, warning=REDBEAT_WARNING if running else None)


def of_redbeat(entry: Any, name: str) -> Found | Row:
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


def read_django(app: Any) -> Source:
    """Return all periodic tasks that django-celery-beat keeps in its database, read through its models. Blocks for it.
    Sets Django up if that was not done; raises `NeliError` if one of them does not work.
    """
    try:
        import django
        from django.apps import apps
        from django.core.exceptions import AppRegistryNotReady, ImproperlyConfigured
        from django.db import Error
    except ImportError as exc:
        raise NeliError(f"Django is not installed here ({exc})") from None
    try:
        if not apps.ready:
            django.setup()
        from django_celery_beat.models import PeriodicTask
    except (ImportError, ImproperlyConfigured, AppRegistryNotReady, RuntimeError) as exc:
        raise NeliError(
            f"django-celery-beat cannot be loaded ({exc}): set DJANGO_SETTINGS_MODULE to settings that have it in "
            "INSTALLED_APPS"
        ) from None
    try:
        rows = PeriodicTask.objects.select_related("interval", "crontab", "solar", "clocked").order_by("name")
        now = datetime.now(timezone.utc)
        entries = [found_or_left_out(row.name, partial(_found, row, app, now)) for row in rows]
    except Error as exc:
        raise NeliError(f"django-celery-beat's database cannot be read: {exc}") from None
    return Source(what="django-celery-beat", entries=entries, warning=DATABASE_WARNING)


def _found(row: Any, app: Any, now: datetime) -> Found:
    last = row.last_run_at
    if last is not None and last.tzinfo is None and not _zones_are_kept():
        last = last.replace(tzinfo=timezone.utc)
    last = _aware(last)
    when: Any = _schedule(row, app)
    since, notes = None, []
    start = _aware(row.start_time)
    if start is not None and start > now:
        # An interval is due at its start; the others at their first time from then on.
        since = start - (when.run_every if isinstance(when, schedule) else _LEAST)
    elif last is None:
        since = _aware(row.date_changed) or now  # as DatabaseScheduler has it
    if row.one_off:
        when, since = _one_off(row, when, max(each for each in (since, last) if each is not None), now)
        notes.append("runs one time")
    options = _options(row, now)
    if row.expires is not None:
        notes.append(f"is sent after {_aware(row.expires):%Y-%m-%d %H:%M:%S} UTC, too, but then no worker runs it")
    if row.description:
        notes.append("without its description")
    return Found(
        name=row.name,
        task=row.task,
        schedule=when,
        args=json.loads(row.args or "[]"),
        kwargs=json.loads(row.kwargs or "{}"),
        options=options,
        paused=not row.enabled,
        last=None if last is None else last.timestamp(),
        runs=row.total_run_count,
        since=None if since is None else since.timestamp(),
        notes=tuple(notes),
    )


def _schedule(row: Any, app: Any) -> Any:
    if row.interval is not None:
        return schedule(timedelta(**{row.interval.period: row.interval.every}), app=app)
    if row.crontab is not None:
        return _crontab(row.crontab, app)
    if row.solar is not None:
        return solar(row.solar.event, float(row.solar.latitude), float(row.solar.longitude), app=app)
    if row.clocked is not None:
        return once(_aware(row.clocked.clocked_time), app=app)
    raise NeliError("it has no schedule")


def _zones_are_kept() -> bool:
    from django.conf import settings

    return bool(getattr(settings, "DJANGO_CELERY_BEAT_TZ_AWARE", True))


def _crontab(row: Any, app: Any) -> crontab:
    """Return a crontab in the app's time zone; refuse one of another zone unless it means the same there."""
    names = ("minute", "hour", "day_of_week", "day_of_month", "month_of_year")
    fields = {name: str(getattr(row, name)).replace(" ", "") for name in names}
    if _zones_are_kept() and str(row.timezone) != str(app.timezone):
        # A crontab that restricts the minute only needs the same minute.
        apart = timedelta(hours=1) if all(fields[name] == "*" for name in names[1:]) else timedelta.max
        days = (datetime.now(timezone.utc) + timedelta(days=each) for each in range(3660))
        if any((offset_at(row.timezone, day) - offset_at(app.timezone, day)) % apart for day in days):
            raise NeliError(
                f"its crontab is in {row.timezone}, and the app in {app.timezone}: write it in the app's time zone, or "
                "set the app's `timezone` to this one"
            )
    return crontab(**fields, app=app)


def _one_off(row: Any, when: Any, since: datetime, now: datetime) -> tuple[once, datetime]:
    """Return the one time at which an entry runs that runs one time, and a moment before it."""
    at: datetime | None = when.at if isinstance(when, once) else next_slot(when, since)
    if row.total_run_count > 0 or (isinstance(when, once) and not row.enabled and when.at <= now):
        raise NeliError("runs one time, and did")
    if at is None:
        raise NeliError("runs one time, which never comes")
    return once(at), min(since, at - _LEAST)


def _options(row: Any, now: datetime) -> dict[str, Any]:
    expires = _aware(row.expires)
    if expires is not None and expires <= now:
        raise NeliError("it has expired")
    options = {name: getattr(row, name) for name in ("queue", "exchange", "routing_key", "priority")}
    options["expires"] = row.expire_seconds if expires is None else expires
    given = {name: value for name, value in options.items() if value is not None}
    # django-celery-results stores this one with the result.
    return {**given, "headers": {**json.loads(row.headers or "{}"), "periodic_task_name": row.name}}


def _aware(at: Any) -> Any:
    if at is None:
        return None
    if at.tzinfo is None:
        from django.utils.timezone import get_default_timezone

        return to_utc(get_default_timezone(), at)
    return at.astimezone(timezone.utc)
