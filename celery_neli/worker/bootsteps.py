"""celery-neli in a worker: steps of Celery's blueprints.

The curator starts after the pool has forked its children, and its release comes after the pool has drained, or was
killed. Steps stop in the reverse order of their start, so one step cannot do both: `Office`, the first of all to start,
makes the lease, which the children inherit, and is the last to stop; `Election` joins, late.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import bootsteps
from celery.signals import worker_shutdown

from celery_neli.config import enabled, worker_settings
from celery_neli.election.leadership import leadership_for
from celery_neli.election.shared_lease import shared
from celery_neli.exceptions import ConfigurationError
from celery_neli.periodic.call import check_app
from celery_neli.worker.events import tell
from celery_neli.worker.handover import Handover
from celery_neli.worker.in_flight import begin_drain
from celery_neli.worker.refusal import refusing
from celery_neli.worker.strategy import check_all

if TYPE_CHECKING:
    from celery import Celery

    from celery_neli.election.leadership import Leadership
    from celery_neli.worker.in_flight import Drain

REFUSED_POOLS = ("eventlet",)


class Office(bootsteps.StartStopStep):
    """The worker's lease: made before the pool, handed over after it.

    In the worker's blueprint, never in the consumer's: that one restarts whenever the connection to the task broker is
    lost.
    """

    name = "celery_neli.Office"
    label = "Leader's office"

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._leadership: Leadership | None = None
        self._drain: Drain | None = None
        self._handover: Handover | None = None

    def include_if(self, worker: Any) -> bool:
        """Not with `neli_enabled = False`. Raises `ConfigurationError`, which ends the worker's start before anything
        has begun: also for tasks that the worker itself would look at only when it has found the task broker.
        """
        with refusing():
            if not enabled(worker.app):
                return False
            from celery_neli.kafka.properties import validate  # it loads confluent_kafka

            fence_kills = worker_settings(worker.app).fence_kills
            refuse_pool(pool_of(worker), fence_kills=fence_kills, spawn=spawns(worker))
            check_all(worker.app)
            leadership = leadership_for(worker.app, "worker")
            validate(leadership.config)
        lease = shared(worker.app)
        assert lease is not None, "a worker's leadership shares its lease"
        drain = begin_drain(worker.app, leadership, lease)
        drain.fence_kills = fence_kills
        drain.inline = pool_of(worker) == "solo"
        leadership.working = drain.working
        self._leadership, self._drain = leadership, drain
        return True

    def include(self, parent: Any) -> Any:
        """Before all other steps: no step that Celery has can be told to require this one."""
        included = super().include(parent)
        if included:
            parent.steps.remove(self)
            parent.steps.insert(0, self)
        return included

    def start(self, worker: Any) -> None:
        """Listen to what becomes of the lease; nothing has joined the election yet."""
        import celery_neli.worker.control  # noqa: F401 - its commands, for `celery inspect` and `celery control`

        if self._drain is not None:
            self._handover = Handover(self._drain)
            self._handover.listen()
            tell(worker, self._drain.leadership)
            worker_shutdown.connect(self.finish, sender=worker, weak=False)  # sent even if the start was cut short

    def close(self, worker: Any) -> None:
        """The worker begins to stop: hand over while its tasks drain."""
        if self._leadership is not None:
            self._leadership.close()

    def stop(self, worker: Any) -> None:
        """The pool has drained: nothing runs any more."""
        self.finish()

    def terminate(self, worker: Any) -> None:
        """A cold shutdown: prefork's children were killed. Threads and greenlets cannot be, so they are waited for as
        long as the lease is held.
        """
        if pool_of(worker) == "prefork":
            self.finish()
        elif self._leadership is not None:
            self._leadership.stop()

    def finish(self, **_: Any) -> None:
        """Release the lease, if it is still held, and end the curator."""
        if self._drain is not None:
            self._drain.pool_ended()
        if self._leadership is not None:
            self._leadership.stop()
        if self._handover is not None:
            self._handover.ignore()

    def info(self, worker: Any) -> dict[str, Any]:
        """For `celery inspect stats`."""
        if self._leadership is None:
            return {}
        standing = self._leadership.snapshot()
        return {"neli": {"name": self._leadership.config.name, "leading": standing.leading, "term": standing.term}}


class Election(bootsteps.StartStopStep):
    """Joins the worker election once the pool (and an embedded beat) is there."""

    name = "celery_neli.Election"
    label = "Neli"
    # Both fork: a process forked while our thread imports or makes a Kafka client inherits its locks, and hangs.
    requires = ("celery.worker.components:Pool", "celery.worker.components:Beat", Office)

    def include_if(self, worker: Any) -> bool:
        """Not with `neli_enabled = False`."""
        return enabled(worker.app)

    def start(self, worker: Any) -> None:
        """Join; the pool's children have been forked by now."""
        leadership_for(worker.app, "worker").start()

    def stop(self, worker: Any) -> None:
        """Nothing: the pool is still draining."""

    def terminate(self, worker: Any) -> None:
        """Nothing: the pool still runs."""


def pool_of(worker: Any) -> str:
    """The name of the worker's pool: "prefork", "threads", "solo", "gevent" or that of another module."""
    pool = worker.pool_cls if isinstance(worker.pool_cls, str) else worker.pool_cls.__module__
    name = str(pool).rpartition(".")[2]
    return "threads" if name == "thread" else name


def spawns(worker: Any) -> bool:
    """Whether the pool's children are no forks of the worker (Celery 5.7: `worker_pool_start_method`)."""
    return getattr(worker, "pool_start_method", "fork") == "spawn"


def refuse_pool(pool: str, *, fence_kills: bool, spawn: bool) -> None:
    """Raise `ConfigurationError` for a pool that cannot do what is asked of it."""
    if pool in REFUSED_POOLS:
        raise ConfigurationError(
            f"worker_pool = {pool!r}: celery-neli runs with prefork, threads, solo and gevent; "
            "a thread of the operating system does not survive eventlet. "
            "Choose another pool, or set neli_enabled = False"
        )
    if fence_kills and pool != "prefork":
        raise ConfigurationError(
            f"neli_fence_kills = True with worker_pool = {pool!r}: only prefork's children can be killed; "
            "use prefork, or leave neli_fence_kills out and let long tasks ask still_leader()"
        )
    if spawn and pool == "prefork":
        raise ConfigurationError(
            "worker_pool_start_method = 'spawn': the pool's children learn from memory inherited by fork "
            "whether their worker leads; use 'fork'"
        )


def install(app: Celery) -> Celery:
    """Let every worker of `app` join the worker election. Returns `app`; may be repeated.

    `imports = ["celery_neli.auto"]` in the configuration does the same. Beats need neither: `beat_scheduler =
    "celery_neli.Scheduler"`. Does not load the app's configuration, starts nothing. Raises `ConfigurationError` for
    anything but an app.
    """
    check_app(app)
    app.steps["worker"].update((Office, Election))
    app.steps["consumer"].add("celery_neli.worker.consumer_step:LeaderQueues")
    return app
