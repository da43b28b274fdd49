"""An app whose worker election is led, or not, as a test says."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery, _state

from celery_neli.election.lease import boottime
from celery_neli.election.role_state import Grant
from celery_neli.election.shared_lease import SharedLease, share


def make_app(name: str = "shop", **settings: Any) -> Celery:
    """Nobody's current app, on the memory transport."""
    app = Celery(name, broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(neli_group=name, result_expires=None, **settings)
    return app


def own_world(patch: pytest.MonkeyPatch, app: Celery) -> None:
    """Make `app` the current and the only one, without the tasks that Celery hands on from those of other tests."""
    patch.setattr(_state, "_on_app_finalizers", set(_state._on_app_finalizers))  # noqa: SLF001 - they are nowhere else
    patch.setattr(_state, "_get_active_apps", lambda: [app])
    patch.setattr(_state._tls, "current_app", app)  # noqa: SLF001 - set_current cannot be undone


class Lease:
    """What the worker's election of `app` says, as its thread would write it."""

    def __init__(self, app: Celery, *roles: str) -> None:
        self.shared = share(app, SharedLease(roles or ("leader",)))

    def lead(self, term: int = 7, role: str = "leader", *, until: float = 1000.0, resigning: bool = False) -> None:
        """`until`: seconds from now."""
        self.shared.write(self.shared.roles.index(role), Grant(term, boottime() + until, resigning))

    def drain(self, term: int = 7, role: str = "leader") -> None:
        """Resigning, with the lease still held."""
        self.lead(term, role, resigning=True)

    def lose(self, term: int = 7, role: str = "leader") -> None:
        """Fenced."""
        self.lead(term, role, until=-1.0)
