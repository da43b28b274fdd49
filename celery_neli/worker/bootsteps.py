"""`install`, the steps that celery-neli adds to a worker, and the settings with which a worker refuses to start.

Steps stop in the reverse order of their start. `LeaseStep`, the first to start, makes the lease, which the pool's
children inherit, and is the last to stop: it releases the lease after the pool. `ElectionStep` joins after the forks.
"""

from __future__ import annotations

from typing import Any

import click
from celery import Celery, bootsteps
from celery.signals import worker_shutdown, worker_shutting_down
from celery.utils.quorum_queues import detect_quorum_queues
from celery.worker import state

from celery_neli import observability
from celery_neli.config import enabled, setting
from celery_neli.election.leadership import leadership_for
from celery_neli.election.shared_lease import shared
from celery_neli.exceptions import ConfigurationError
from celery_neli.kafka import connect
from celery_neli.periodic.call import check_app
from celery_neli.threads import original
from celery_neli.worker.events import send_transitions
from celery_neli.worker.in_flight import InFlight
from celery_neli.worker.run_events import RunEvents
from celery_neli.worker.strategy import check_all
from celery_neli.worker.task_marking import role_queues


class Refusal(click.ClickException, ConfigurationError):
    """Raised by `app.Worker(...)`; the command `celery worker` prints its message in one line and ends."""


class LeaseStep(bootsteps.StartStopStep):
    """The worker's lease: made before the pool, handed over after it. The consumer's blueprint is no place for it: it
    restarts whenever the connection to the task broker is lost.
    """

    name = "celery_neli.LeaseStep"
    label = "Lease"

    _in_flight: InFlight
    _observability: observability.Observability
    _runs: RunEvents | None = None

    def include_if(self, worker: Any) -> bool:
        """Return True unless `neli_enabled` is off. Raises `Refusal`, which ends the start before anything has begun,
        also for tasks at which Celery looks only when it has found the task broker.
        """
        app, pool = worker.app, pool_of(worker)
        try:
            if not enabled(app):
                return False
            from celery_neli.kafka.properties import validate  # it loads confluent_kafka

            fence_kills = setting(app, "neli_fence_kills")
            refuse_pool(pool, fence_kills=fence_kills, spawn=getattr(worker, "pool_start_method", "fork") == "spawn")
            refuse_queues(app)
            check_all(app)
            observability.check(app)
            leadership = leadership_for(app, "worker", connect)
            validate(leadership.config)
        except ConfigurationError as exc:
            raise Refusal(str(exc)) from None
        leases = shared(app)
        assert leases is not None, "a worker's leadership shares its leases"
        self._in_flight = InFlight(app, leadership, leases, fence_kills=fence_kills, inline=pool == "solo")
        leadership.working, leadership.excused = self._in_flight.progressing, self._in_flight.excused
        leadership.unready = self._in_flight.unready
        app.neli_in_flight = self._in_flight
        self._observability = worker.neli_observability = observability.Observability(app, leadership)
        return True

    def include(self, parent: Any) -> Any:
        """Stand before all other steps, since none of Celery's can be made to require this one."""
        included = super().include(parent)
        if included:
            parent.steps.remove(self)
            parent.steps.insert(0, self)
        return included

    def start(self, worker: Any) -> None:
        """Report the transitions of the leadership, which has not joined the election yet, and what tasks do."""
        import celery_neli.worker.control  # noqa: F401 - its commands, for `celery inspect` and `celery control`

        send_transitions(worker, self._in_flight.leadership)
        self._runs = worker.neli_runs = RunEvents(worker.hostname)
        worker_shutdown.connect(self.stop, sender=worker, weak=False)  # sent even if the start was cut short

    def close(self, worker: Any) -> None:
        """Hand over while the tasks drain, as the worker begins to stop."""
        self._in_flight.leadership.close()

    def terminate(self, worker: Any) -> None:
        """Release the lease in a cold shutdown. Prefork's children were killed; threads and greenlets are waited for as
        long as the lease is held.
        """
        if pool_of(worker) == "prefork":
            self.stop(worker)
        else:
            self._in_flight.leadership.stop()
            self._observability.stop()

    def stop(self, worker: Any = None, **_: Any) -> None:
        """Release the lease if it is still held: the pool has drained, and nothing runs any more."""
        self._in_flight.pool_ended()
        self._in_flight.leadership.stop()
        if self._runs is not None:
            self._runs.stop()
            self._runs = None
        self._observability.stop()

    def info(self, worker: Any) -> dict[str, Any]:
        """Return what `celery inspect stats` shows."""
        leadership = self._in_flight.leadership
        standing = leadership.role().standing()
        return {"neli": {"name": leadership.config.name, "leading": standing.leading, "term": standing.term}}


class ElectionStep(bootsteps.StartStopStep):
    """Joins the worker election once the pool (and an embedded beat) is there."""

    name = "celery_neli.ElectionStep"
    label = "Election"
    # Both fork: a process forked while our thread imports or makes a Kafka client inherits its locks, and hangs.
    requires = ("celery.worker.components:Pool", "celery.worker.components:Beat", LeaseStep)

    def include_if(self, worker: Any) -> bool:
        """Return True unless `neli_enabled` is off."""
        return enabled(worker.app)

    def start(self, worker: Any) -> None:
        """Join; the pool's children have been forked by now. From now on, a signal to stop begins the handover.

        `LeaseStep.close` may come seconds later: without an event loop (gevent), Celery waits for a message once or
        twice more, 2 s each time (Redis: 3 s). A solo worker first ends the task that it runs, under its lease.
        """
        leadership = leadership_for(worker.app, "worker", connect)
        leadership.start()
        worker.neli_observability.start()
        worker.neli_runs.start(tuple(worker.app.amqp.queues.consume_from))

        def hand_over(**_: Any) -> None:
            """Called in a signal handler, which must take no lock; `threading` takes some to start a thread."""
            if pool_of(worker) != "solo" or not state.active_requests:
                original("_thread", "start_new_thread")(leadership.close, ())

        worker_shutting_down.connect(hand_over, sender=worker.hostname, weak=False)


def install(app: Celery) -> Celery:
    """Let every worker of `app` join the worker election, and return `app`.

    `imports = ["celery_neli.auto"]` in the configuration does the same. Beats need neither: `beat_scheduler =
    "celery_neli.Scheduler"`. It does not load the app's configuration and starts nothing; repeating it is safe.

    Raises:
        ConfigurationError: `app` is no Celery app.
    """
    check_app(app)
    app.steps["worker"].update((LeaseStep, ElectionStep))
    app.steps["consumer"].add("celery_neli.worker.consumer_step:RoleQueues")
    return app


def pool_of(worker: Any) -> str:
    """Return the name of the worker's pool: "prefork", "threads", "solo", "gevent" or that of another module."""
    pool = worker.pool_cls if isinstance(worker.pool_cls, str) else worker.pool_cls.__module__
    name = str(pool).rpartition(".")[2]
    return "threads" if name == "thread" else name


def refuse_pool(pool: str, *, fence_kills: bool, spawn: bool) -> None:
    """Raise `ConfigurationError` for a pool that cannot do what the settings ask of it."""
    if pool == "eventlet":
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


def refuse_queues(app: Any) -> None:
    """Raise `ConfigurationError` if this worker is configured to consume a role queue whether it leads or not, or if
    RabbitMQ would refuse it: a quorum queue, and no other queue of the app is, so that Celery limits the prefetch for
    all consumers together (global QoS).
    """
    consumed = app.amqp.queues.consume_from
    declared = {each if isinstance(each, str) else each.name for each in app.conf.get("task_queues") or ()}
    # By the class: a transport of kombu's Redis opens a descriptor, and as garbage closes its number in a forked beat.
    driver = app.connection_for_read().get_transport_cls().driver_type
    queue: Any  # what kombu's types know of it lacks the arguments
    for role, queue in role_queues(app):
        quorum = (queue.queue_arguments or {}).get("x-queue-type") == "quorum"
        if driver == "amqp" and quorum and not detect_quorum_queues(app, driver)[0]:
            raise ConfigurationError(
                f"task_create_missing_queue_type = 'quorum' makes {queue.name!r} a quorum queue, and "
                f"task_default_queue_type = {app.conf.task_default_queue_type!r}: RabbitMQ lets a worker consume both "
                "kinds only if Celery knows of one; set task_default_queue_type = 'quorum' too"
            )
        if queue.name not in consumed:
            continue
        if queue.name in declared:
            where = "task_queues names it: take it out, @leader_only tasks find it by themselves"
        elif queue.name == app.conf.task_default_queue:
            where = "task_default_queue names it: choose another name for either"
        else:
            where = "-Q names it: leave it out, the leader consumes it by itself"
        raise ConfigurationError(
            f"the queue {queue.name!r} is for the leader of role {role!r}, and this worker would consume it "
            f"whether it leads or not; {where}"
        )
