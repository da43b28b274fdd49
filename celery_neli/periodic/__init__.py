"""Periodic tasks at runtime, from any process that has the app (:mod:`celery_neli.periodic.api`)."""

from __future__ import annotations

from importlib import import_module
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
    "Backfilled", "Batch", "Change", "NextRun", "Pause", "Periodic", "Run", "Scope",
    "backfill", "batch", "get", "list", "next_runs", "pause", "pause_where", "pauses", "put", "remove", "resume",
    "resume_where", "run_now", "runs", "scope",
]  # fmt: skip

#: Where names are that are not in `api`. Backfills read the leader topic, and stand above this package.
_ELSEWHERE = {
    **dict.fromkeys(("Backfilled", "backfill"), "celery_neli.backfill.api"),
    **dict.fromkeys(("NextRun", "next_runs"), "celery_neli.periodic.preview"),
    **dict.fromkeys(("Scope", "scope"), "celery_neli.periodic.scoped"),
}


def __getattr__(name: str) -> Any:
    """Load the API when it is first used (PEP 562): every `celery` command imports this package for its options."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ELSEWHERE.get(name, "celery_neli.periodic.api")), name)
