"""Periodic tasks at runtime, from any process that has the app (:mod:`celery_neli.periodic.api`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery_neli.history.runs import Run
    from celery_neli.periodic.api import Change, Periodic, get, list, pause, put, remove, resume, run_now, runs  # noqa: A004

__all__ = ["Change", "Periodic", "Run", "get", "list", "pause", "put", "remove", "resume", "run_now", "runs"]


def __getattr__(name: str) -> Any:
    """Load the API when it is first used (PEP 562): every `celery` command imports this package for its options."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from celery_neli.periodic import api

    return getattr(api, name)
