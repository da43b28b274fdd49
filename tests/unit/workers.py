"""A worker's main process without its processes: Celery's own consumer, timer, rate limits and semaphore on kombu's
memory transport; a pool that does nothing until a test says so.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any

from amqp.exceptions import PreconditionFailed
from celery.bootsteps import RUN
from celery.worker import WorkController, state
from celery.worker.consumer import Consumer
from kombu.asynchronous.semaphore import LaxBoundedSemaphore
from kombu.asynchronous.timer import Timer
from kombu.common import QoS

from celery_neli.worker.consumer_step import RoleQueues
from celery_neli.worker.in_flight import InFlight
from celery_neli.worker.task_marking import role_queue
from tests.unit.leases import Lease, make_app

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery

_number = itertools.count()


class Job:
    """One task in the pool."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.id = arguments["correlation_id"]
        self._arguments = arguments
        self._write_to = self._scheduled_for = None  # of billiard's: the child that gets it
        self.terminated: int | None = None

    @property
    def request(self) -> Any:
        return self._arguments["accept_callback"].__self__

    def written(self) -> None:
        """A child has it; the main process has not heard of that."""
        self._scheduled_for = object()

    def accept(self, *, at: float | None = None, pid: int = 4242) -> None:
        self.written()
        self._arguments["accept_callback"](pid, time.monotonic() if at is None else at)

    def succeed(self) -> None:
        self._arguments["callback"]((False, None, 0.0))

    def fail(self, info: Any) -> None:
        self._arguments["error_callback"](info)

    def exceed(self) -> None:
        self._arguments["timeout_callback"](False, 1.0)

    def terminate(self, signal: int) -> None:
        self.terminated = signal


class Pool:
    """Keeps what it is given."""

    num_processes = 2
    flush = None

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.closed = False
        self.killed: list[tuple[int, int]] = []

    def apply_async(self, _target: Any, **arguments: Any) -> Job | None:
        if self.closed:
            return None
        self.jobs.append(Job(arguments))
        return self.jobs[-1]

    def terminate_job(self, pid: int, signal: int) -> None:
        self.killed.append((pid, signal))


class Controller:
    """As much of a WorkController as hands requests to the pool."""

    state = state
    _process_task = WorkController._process_task  # noqa: SLF001 - the thing itself rather than a copy
    _process_task_sem = WorkController._process_task_sem  # noqa: SLF001

    def __init__(self, pool: Pool, slots: int) -> None:
        self.pool = pool
        self.semaphore = LaxBoundedSemaphore(slots)
        self._quick_acquire, self._quick_release = self.semaphore.acquire, self.semaphore.release


class BareConsumer(Consumer):
    """Without steps, unconnected."""

    class Blueprint(Consumer.Blueprint):
        """Of no steps but the app's."""

        default_steps = ()


class Role:
    """Notes that it was asked to back off."""

    def __init__(self, name: str, resigned: list[str | None]) -> None:
        self._name, self._resigned = name, resigned

    def resign(self, *, back_off: bool) -> None:
        assert back_off
        self._resigned.append(self._name)


class Leadership:
    """Notes which roles it was asked to hand over."""

    def __init__(self) -> None:
        self.resigned: list[str | None] = []

    def role(self, name: str = "leader") -> Role:
        return Role(name, self.resigned)


class Worker:
    """One worker of an app of its own, in an election, connected to nothing yet."""

    def __init__(self, *, slots: int = 2, **settings: Any) -> None:
        name = f"worker{next(_number)}"
        self.ordinary = f"{name}.ordinary"
        self.app: Celery = make_app(name, task_default_queue=self.ordinary, **settings)
        self.app.finalize()
        for name in [each for each in self.app.tasks if not each.startswith("celery.")]:
            del self.app.tasks[name]  # shared tasks of other tests, for other roles
        self.lease = Lease(self.app, *settings.get("neli_roles", ()))
        self.leadership: Any = Leadership()
        self.in_flight = InFlight(self.app, self.leadership, self.lease.shared)
        self.app.neli_in_flight = self.in_flight
        self.refused: set[str] = set()  # queues that the broker does not declare; it closes the channel
        self.pool = Pool()
        self.timer = Timer()
        self.controller = Controller(self.pool, slots)
        self.consumer: Any = BareConsumer(
            self.controller._process_task_sem,  # noqa: SLF001
            app=self.app, pool=self.pool, timer=self.timer, controller=self.controller, hub=None,
        )  # fmt: skip
        self.consumer.event_dispatcher = None
        self.consumer.blueprint.state = RUN
        self.step = RoleQueues(self.consumer)
        self.step.include_if(self.consumer)

    def connect(self) -> None:
        """As Celery's steps do it, with ours last."""
        consumer = self.consumer
        consumer.connection = self.app.connection_for_read()
        consumer.connection.channel = self._refusing(consumer.connection.channel)
        consumer.update_strategies()
        consumer.reset_rate_limits()  # there are more tasks now than when it was made
        consumer.task_consumer = self.app.amqp.TaskConsumer(
            consumer.connection, on_decode_error=consumer.on_decode_error
        )
        consumer.qos = QoS(consumer.task_consumer.qos, 4)
        self.step.start(consumer)
        consumer.task_consumer.on_message = consumer.create_task_handler()
        consumer.task_consumer.consume()

    def _refusing(self, make: Callable[[], Any]) -> Callable[[], Any]:
        def channel() -> Any:
            made = make()
            declare = made.queue_declare

            def queue_declare(queue: str, **options: Any) -> Any:
                if queue in self.refused:
                    made.close()
                    raise PreconditionFailed(f"PRECONDITION_FAILED - inequivalent arg 'x-max-priority' for {queue}")
                return declare(queue, **options)

            made.queue_declare = queue_declare
            return made

        return channel

    def receive(self) -> None:
        """Take all messages there are, and what was asked of the consumer's thread."""
        self.turn()
        while any(self.size(each.name) for each in self.consumer.task_consumer.queues):
            self.consumer.connection.drain_events(timeout=0.01)
        self.turn()

    def turn(self) -> None:
        """What was asked of the consumer's thread."""
        self.consumer.perform_pending_operations()

    def queue(self, role: str | None = None) -> str:
        return str(role_queue(self.app, role).name)

    def consumes(self) -> set[str]:
        return {each.name for each in self.consumer.task_consumer.queues}

    def size(self, queue: str) -> int:
        """Messages in `queue`; 0 if there is no such queue."""
        channel = self.consumer.connection.default_channel
        if not channel._has_queue(queue):  # noqa: SLF001 - kombu asks it that way of itself
            return 0
        return int(channel.queue_declare(queue, passive=True).message_count)

    def messages(self, queue: str) -> list[Any]:
        """Take them out."""
        channel = self.consumer.connection.default_channel
        found = []
        while (message := channel.basic_get(queue, no_ack=True)) is not None:
            found.append(message)
        return found

    def tick(self, seconds: float) -> None:
        """Fire the timers that are due within `seconds`."""
        for item in sorted(self.timer.queue):
            if item.eta <= time.monotonic() + seconds and not item.entry.canceled:
                item.entry.cancel()
                item.entry()

    def unacked(self) -> int:
        """Messages taken and neither acknowledged nor returned."""
        return len(self.consumer.task_consumer.channel.qos._delivered) - len(  # noqa: SLF001
            self.consumer.task_consumer.channel.qos._dirty  # noqa: SLF001
        )
