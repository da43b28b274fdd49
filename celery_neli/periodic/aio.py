"""`celery_neli.periodic` for event loops: the same functions as coroutines, which run on threads of their own.

    from celery_neli.periodic import aio

    await aio.put(app, "tidy-up-42", "shop.tasks.tidy_up", "PT30S", args=[42])
    async for entry in aio.list(app, prefix="tidy-up-"):
        ...
    async with aio.batch(app) as batch:
        await batch.put("tidy-up-43", "shop.tasks.tidy_up", "PT30S", args=[43])

A coroutine that is cancelled does not end what its thread has begun: the change may be made nevertheless.
"""

from __future__ import annotations

import asyncio
import builtins
import contextvars
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import islice
from types import TracebackType
from typing import Any, Final, TypeVar

from celery_neli.periodic import api
from celery_neli.periodic.api import Batch, Pause, Periodic, Run
from celery_neli.periodic.preview import NextRun
from celery_neli.periodic.scoped import Scope, ScopedBatch
from celery_neli.periodic.scoped import scope as make_scope

__all__ = [
    "batch",
    "get",
    "list",
    "pause",
    "pause_where",
    "pauses",
    "put",
    "remove",
    "resume",
    "resume_where",
    "run_now",
    "runs",
    "scope",
]

THREADS: Final = 4  # of a process; the schedule topic serves one question at a time
PORTION: Final = 200  # entries that `list` makes in one go

_Result = TypeVar("_Result")


async def put(app: Any, name: str, task: Any, schedule: Any, **given: Any) -> Periodic:
    """As `periodic.put`."""
    return await _call(api.put, app, name, task, schedule, **given)


async def pause(app: Any, name: str, **given: Any) -> Periodic:
    """As `periodic.pause`."""
    return await _call(api.pause, app, name, **given)


async def resume(app: Any, name: str, **given: Any) -> Periodic:
    """As `periodic.resume`."""
    return await _call(api.resume, app, name, **given)


async def remove(app: Any, name: str, **given: Any) -> None:
    """As `periodic.remove`."""
    await _call(api.remove, app, name, **given)


async def pause_where(app: Any, **given: Any) -> Pause:
    """As `periodic.pause_where`."""
    return await _call(api.pause_where, app, **given)


async def resume_where(app: Any, **given: Any) -> builtins.list[Pause]:
    """As `periodic.resume_where`."""
    return await _call(api.resume_where, app, **given)


async def pauses(app: Any) -> builtins.list[Pause]:
    """As `periodic.pauses`."""
    return await _call(api.pauses, app)


async def get(app: Any, name: str) -> Periodic | None:
    """As `periodic.get`."""
    return await _call(api.get, app, name)


async def run_now(app: Any, name: str, **given: Any) -> Any:
    """As `periodic.run_now`."""
    return await _call(api.run_now, app, name, **given)


async def runs(app: Any, name: str | None = None, **given: Any) -> builtins.list[Run]:
    """As `periodic.runs`."""
    return await _call(api.runs, app, name, **given)


async def list(app: Any, **given: Any) -> AsyncIterator[Periodic]:  # noqa: A001 - is read as aio.list
    """As `periodic.list`, for `async for`."""
    async for entry in _each(partial(api.list, app, **given)):
        yield entry


def batch(app: Any, **given: Any) -> AsyncBatch:
    """As `periodic.batch`, for `async with`; each call on the batch is a coroutine."""
    return AsyncBatch(partial(api.batch, app, **given))


def scope(app: Any, prefix: str) -> AsyncScope:
    """As `periodic.scope`; each call on the scope is a coroutine. Does not block."""
    return AsyncScope(make_scope(app, prefix))


class AsyncScope:
    """As `Scope`, with coroutines."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def __repr__(self) -> str:
        return f"periodic.aio.scope(app, {self.prefix!r})"

    @property
    def prefix(self) -> str:
        """What the names of its entries begin with."""
        return self._scope.prefix

    def scope(self, prefix: str) -> AsyncScope:
        """As `Scope.scope`. Does not block."""
        return AsyncScope(self._scope.scope(prefix))

    async def put(self, name: str, task: Any, schedule: Any, **given: Any) -> Periodic:
        """As `Scope.put`."""
        return await _call(self._scope.put, name, task, schedule, **given)

    async def pause(self, name: str, **given: Any) -> Periodic:
        """As `Scope.pause`."""
        return await _call(self._scope.pause, name, **given)

    async def resume(self, name: str, **given: Any) -> Periodic:
        """As `Scope.resume`."""
        return await _call(self._scope.resume, name, **given)

    async def remove(self, name: str, **given: Any) -> None:
        """As `Scope.remove`."""
        await _call(self._scope.remove, name, **given)

    async def pause_where(self, **given: Any) -> Pause:
        """As `Scope.pause_where`."""
        return await _call(self._scope.pause_where, **given)

    async def resume_where(self, **given: Any) -> builtins.list[Pause]:
        """As `Scope.resume_where`."""
        return await _call(self._scope.resume_where, **given)

    async def pauses(self) -> builtins.list[Pause]:
        """As `Scope.pauses`."""
        return await _call(self._scope.pauses)

    async def get(self, name: str) -> Periodic | None:
        """As `Scope.get`."""
        return await _call(self._scope.get, name)

    async def run_now(self, name: str, **given: Any) -> Any:
        """As `Scope.run_now`."""
        return await _call(self._scope.run_now, name, **given)

    async def runs(self, name: str | None = None, **given: Any) -> builtins.list[Run]:
        """As `Scope.runs`."""
        return await _call(self._scope.runs, name, **given)

    async def next_runs(self, name_or_schedule: Any, n: int = 10, **given: Any) -> builtins.list[NextRun]:
        """As `Scope.next_runs`."""
        return await _call(self._scope.next_runs, name_or_schedule, n, **given)

    async def list(self, **given: Any) -> AsyncIterator[Periodic]:
        """As `Scope.list`, for `async for`."""
        async for entry in _each(partial(self._scope.list, **given)):
            yield entry

    def batch(self, **given: Any) -> AsyncBatch:
        """As `Scope.batch`, for `async with`; each call on the batch is a coroutine."""
        return AsyncBatch(partial(self._scope.batch, **given))


class AsyncBatch:
    """As `Batch`, with coroutines."""

    def __init__(self, make: Callable[[], Batch | ScopedBatch]) -> None:
        self._make = make
        self._batch: Batch | ScopedBatch | None = None

    async def put(self, *args: Any, **given: Any) -> None:
        """As `Batch.put`."""
        await _call(self._entered.put, *args, **given)

    async def pause(self, *args: Any, **given: Any) -> None:
        """As `Batch.pause`."""
        await _call(self._entered.pause, *args, **given)

    async def resume(self, *args: Any, **given: Any) -> None:
        """As `Batch.resume`."""
        await _call(self._entered.resume, *args, **given)

    async def remove(self, *args: Any, **given: Any) -> None:
        """As `Batch.remove`."""
        await _call(self._entered.remove, *args, **given)

    def __len__(self) -> int:
        return len(self._entered)

    async def __aenter__(self) -> AsyncBatch:
        self._batch = await _call(self._make)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await _call(self._entered.__exit__, kind, error, at)

    @property
    def _entered(self) -> Batch | ScopedBatch:
        if self._batch is None:
            raise RuntimeError("use it in `async with periodic.aio.batch(app) as batch:`")
        return self._batch


async def _each(make: Callable[[], Iterator[Periodic]]) -> AsyncIterator[Periodic]:
    entries = await _call(make)
    while portion := await _call(_portion, entries):
        for entry in portion:
            yield entry


def _portion(entries: Iterator[Periodic]) -> builtins.list[Periodic]:
    return [*islice(entries, PORTION)]


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, thread_name_prefix="neli-periodic")


async def _call(function: Callable[..., _Result], /, *args: Any, **given: Any) -> _Result:
    context = contextvars.copy_context()
    call: Callable[[], _Result] = partial(context.run, function, *args, **given)
    return await asyncio.get_running_loop().run_in_executor(_pool(), call)
