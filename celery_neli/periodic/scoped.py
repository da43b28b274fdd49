"""The runtime schedule as one tenant sees it: the entries whose names begin with a prefix, without that prefix."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

from celery_neli.exceptions import ConfigurationError, Conflict
from celery_neli.history.runs import Run
from celery_neli.periodic import api, run_history
from celery_neli.periodic.batches import Batch
from celery_neli.periodic.call import check_app, plain
from celery_neli.periodic.preview import NextRun, preview
from celery_neli.periodic.text import parse, read
from celery_neli.periodic.view import Periodic
from celery_neli.schedule_topic.codec import MAX_NAME
from celery_neli.schedule_topic.rules import ALL, PREFIX, Pause
from celery_neli.schedule_topic.values import shown

_Result = TypeVar("_Result")


def scope(app: Any, prefix: str) -> Scope:
    """Return the functions of `periodic` for the entries whose names begin with a prefix.

        tenant = periodic.scope(app, "tenant-42/")
        tenant.put("digest", "shop.tasks.digest", "0 7 * * *")

    Names are given and returned without the prefix, and no entry with another one can be seen or changed. It guards
    against mistakes, not against code that imports `periodic` itself. End the prefix with a character that no tenant's
    name holds, such as "/": "tenant-4" is a prefix of "tenant-42", too.

    Raises:
        ConfigurationError: the prefix is empty, too long or not printable.
    """
    check_app(app)
    return Scope(app, _checked(prefix))


class Scope:
    """What `scope` returns: see `periodic` for each function, which has no `app` here. Any thread."""

    def __init__(self, app: Any, prefix: str) -> None:
        self._app, self.prefix = app, prefix

    def __repr__(self) -> str:
        return f"periodic.scope(app, {self.prefix!r})"

    def scope(self, prefix: str) -> Scope:
        """Return a scope within this one."""
        return Scope(self._app, _checked(self.prefix + _checked(prefix)))

    def put(self, name: str, task: Any, schedule: Any, **given: Any) -> Periodic:
        """As `periodic.put`."""
        return self._view(api.put, name, task, schedule, **given)

    def pause(self, name: str, **given: Any) -> Periodic:
        """As `periodic.pause`."""
        return self._view(api.pause, name, **given)

    def resume(self, name: str, **given: Any) -> Periodic:
        """As `periodic.resume`."""
        return self._view(api.resume, name, **given)

    def remove(self, name: str, **given: Any) -> None:
        """As `periodic.remove`."""
        self._do(api.remove, name, **given)

    def get(self, name: str) -> Periodic | None:
        """As `periodic.get`."""
        found: Periodic | None = self._do(api.get, name)
        return None if found is None else self._without(found)

    def list(self, *, prefix: str = "", after: str | None = None, **given: Any) -> Iterator[Periodic]:
        """As `periodic.list`."""
        prefix = plain(prefix)
        if not isinstance(prefix, str):
            raise ConfigurationError(f"prefix = {shown(prefix)}: give a string")
        begin = None if after is None else self.full(after)
        found = api.list(self._app, prefix=self.prefix + prefix, after=begin, **given)
        return (self._without(each) for each in found)

    def run_now(self, name: str, **given: Any) -> Any:
        """As `periodic.run_now`."""
        return self._do(api.run_now, name, **given)

    def runs(self, name: str | None = None, **given: Any) -> builtins.list[Run]:
        """As `periodic.runs`."""
        own = None if name is None else self.full(name)
        found = run_history.runs(self._app, own, only=lambda run: run.entry.startswith(self.prefix), **given)
        return [replace(each, entry=each.entry.removeprefix(self.prefix)) for each in found]

    def next_runs(self, name_or_schedule: Any, n: int = 10, **given: Any) -> builtins.list[NextRun]:
        """As `periodic.next_runs`; of an entry if there is one of this name, else of a schedule."""
        name = name_or_schedule.name if isinstance(name_or_schedule, Periodic) else name_or_schedule
        if isinstance(name, str) and api.get(self._app, self.full(name)) is not None:
            return preview(self._app, self.full(name), n, named=True, **given).runs
        when = read(parse(name, app=self._app), app=self._app)  # no entry of another scope
        return preview(self._app, when, n, **given).runs

    def batch(self, **given: Any) -> ScopedBatch:
        """As `periodic.batch`."""
        return ScopedBatch(self, api.batch(self._app, **given))

    def pause_where(self, *, prefix: str | None = None, tag: str | None = None, **given: Any) -> Pause:
        """As `periodic.pause_where`; `all` means all entries of this scope. Without `tag`: it would touch others."""
        where = self._where(given.pop("all", False), tag, prefix)
        return self._pause(api.pause_where(self._app, prefix=where, **given))

    def resume_where(self, *, prefix: str | None = None, tag: str | None = None, **given: Any) -> builtins.list[Pause]:
        """As `periodic.resume_where`, of pauses that were made within this scope."""
        where = self._where(given.pop("all", False), tag, prefix)
        return [self._pause(each) for each in api.resume_where(self._app, prefix=where, **given)]

    def pauses(self) -> builtins.list[Pause]:
        """As `periodic.pauses`: those that were made within this scope."""
        found = api.pauses(self._app)
        return [self._pause(each) for each in found if each.of == PREFIX and each.value.startswith(self.prefix)]

    def full(self, name: Any) -> str:
        """Return the whole name of an entry."""
        name = plain(name)
        if not isinstance(name, str):
            raise ConfigurationError(f"name = {shown(name)}: give the name of an entry, a string")
        return self.prefix + name

    def _where(self, all_: bool, tag: Any, prefix: Any) -> str:
        if tag is not None:
            raise ConfigurationError(f"tag = {shown(tag)}: would pause entries outside of {self!r}; give all or prefix")
        if (all_ is True) == (prefix is not None):
            raise ConfigurationError("which entries? give one of all=True and prefix")
        return self.prefix if prefix is None else self.prefix + _checked(prefix)

    def _pause(self, pause: Pause) -> Pause:
        value = pause.value.removeprefix(self.prefix)
        return replace(pause, of=PREFIX if value else ALL, value=value)

    def _view(self, function: Callable[..., Periodic], name: str, *args: Any, **given: Any) -> Periodic:
        return self._without(self._do(function, name, *args, **given))

    def _do(self, function: Callable[..., _Result], name: str, *args: Any, **given: Any) -> _Result:
        full = self.full(name)
        try:
            return function(self._app, full, *args, **given)
        except Conflict as exc:
            raise self._conflict(exc) from None

    def _conflict(self, exc: Conflict) -> Conflict:
        names = tuple(each.removeprefix(self.prefix) for each in exc.names)
        return Conflict(str(exc).replace(self.prefix, ""), names)

    def _without(self, found: Periodic) -> Periodic:
        return replace(found, name=found.name.removeprefix(self.prefix))


class ScopedBatch:
    """As `Batch`, for the entries of a scope."""

    def __init__(self, scope: Scope, batch: Batch) -> None:
        self._scope, self._batch = scope, batch

    def put(self, name: str, *args: Any, **given: Any) -> None:
        """As `Batch.put`."""
        self._batch.put(self._scope.full(name), *args, **given)

    def pause(self, name: str, **given: Any) -> None:
        """As `Batch.pause`."""
        self._batch.pause(self._scope.full(name), **given)

    def resume(self, name: str, **given: Any) -> None:
        """As `Batch.resume`."""
        self._batch.resume(self._scope.full(name), **given)

    def remove(self, name: str, **given: Any) -> None:
        """As `Batch.remove`."""
        self._batch.remove(self._scope.full(name), **given)

    def __len__(self) -> int:
        return len(self._batch)

    def __enter__(self) -> ScopedBatch:
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            self._batch.__exit__(*error)
        except Conflict as exc:
            raise self._scope._conflict(exc) from None  # noqa: SLF001


def _checked(prefix: Any) -> str:
    prefix = plain(prefix)
    if not isinstance(prefix, str) or not prefix.strip() or not prefix.isprintable() or len(prefix) >= MAX_NAME:
        raise ConfigurationError(f"prefix = {shown(prefix)}: give 1 to {MAX_NAME - 1} printable characters")
    return str(prefix)
