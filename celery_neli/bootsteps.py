"""The curator in a worker: steps of Celery's worker blueprint.

The curator starts after the pool has forked its children, and it ends after the pool has drained: steps stop in the
reverse order of their start, so one step cannot do both. `Election` starts it, late; the release waits for
`worker_shutdown`, which Celery sends when every step has stopped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import bootsteps
from celery.signals import worker_shutdown

from celery_neli.config import enabled
from celery_neli.exceptions import ConfigurationError
from celery_neli.leadership import leadership_for

if TYPE_CHECKING:
    from celery import Celery

    from celery_neli.leadership import Leadership

REFUSED_POOLS = ("eventlet",)


class Election(bootsteps.StartStopStep):
    """Joins the worker election once the pool (and an embedded beat) is there, hands over when the worker stops.

    In the worker blueprint, never in the consumer's: that one restarts whenever the connection to the task broker is
    lost.
    """

    name = "celery_neli.Election"
    label = "Neli"
    # Both fork: a process forked while our thread imports or makes a Kafka client inherits its locks, and hangs.
    requires = ("celery.worker.components:Pool", "celery.worker.components:Beat")

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._leadership: Leadership | None = None

    def include_if(self, worker: Any) -> bool:
        """Not with `neli_enabled = False`. Raises `ConfigurationError`, which ends the worker's start."""
        if not enabled(worker.app):
            return False
        pool = worker.pool_cls if isinstance(worker.pool_cls, str) else worker.pool_cls.__module__
        if pool.rpartition(".")[2] in REFUSED_POOLS:
            raise ConfigurationError(
                f"worker_pool = {pool.rpartition('.')[2]!r}: celery-neli runs with prefork, threads, solo and gevent; "
                "a thread of the operating system does not survive eventlet. "
                "Choose another pool, or set neli_enabled = False"
            )
        self._leadership = leadership_for(worker.app, "worker")  # refuses bad settings before anything has started
        return True

    def start(self, worker: Any) -> None:
        """Join; the pool's children have been forked by now."""
        if self._leadership is not None:
            self._leadership.start()
            worker_shutdown.connect(self._finish, sender=worker, weak=False)

    def close(self, worker: Any) -> None:
        """The worker begins to stop: hand over while its tasks drain."""
        if self._leadership is not None:
            self._leadership.close()

    def stop(self, worker: Any) -> None:
        """Nothing yet: the pool is still draining."""

    def terminate(self, worker: Any) -> None:
        """A cold shutdown sends no `worker_shutdown`: hand over now."""
        self._finish()

    def info(self, worker: Any) -> dict[str, Any]:
        """For `celery inspect stats`."""
        if self._leadership is None:
            return {}
        standing = self._leadership.snapshot()
        return {"neli": {"name": self._leadership.config.name, "leading": standing.leading, "term": standing.term}}

    def _finish(self, **_: Any) -> None:
        if self._leadership is not None:
            self._leadership.stop()


def install(app: Celery) -> Celery:
    """Let every worker of `app` join the worker election. Returns `app`; may be repeated.

    `imports = ["celery_neli.auto"]` in the configuration does the same. Beats need neither: `beat_scheduler =
    "celery_neli.Scheduler"`. Does not load the app's configuration, starts nothing.
    """
    app.steps["worker"].add(Election)
    return app
