"""Periodic tasks at runtime, from any process that has the app (:mod:`celery_neli.periodic.api`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery_neli.history.runs import Run
    from celery_neli.periodic.api import (
        Batch,
        Change,
        Pause,
        Periodic,
        batch,
        get,
        list,  # noqa: A004
        pause,
        pause_where,
        pauses,
        put,
        remove,
        resume,
        resume_where,
        run_now,
        runs,
    )
    from celery_neli.periodic.preview import NextRun, next_runs
    from celery_neli.periodic.scoped import Scope, scope

__all__ = [
    "Batch",
    "Change",
    "NextRun",
    "Pause",
    "Periodic",
    "Run",
    "Scope",
    "batch",
    "get",
    "list",
    "next_runs",
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
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load the API when it is first used (PEP 562): every `celery` command imports this package for its options."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in ("NextRun", "next_runs"):
        from celery_neli.periodic import preview as module
    elif name in ("Scope", "scope"):
        from celery_neli.periodic import scoped as module  # type: ignore[no-redef]
    else:
        from celery_neli.periodic import api as module  # type: ignore[no-redef]

    return getattr(module, name)
