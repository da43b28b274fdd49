"""Send the slots of a plan, one after the other, so that no two processes send one of them.

Of each slot the attempt is recorded, and read back, before its message leaves, and what came of it after that. So a
process that is killed leaves one slot in doubt at most, and the next backfill names it. See `history/fates`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final
from uuid import uuid4

import celery.beat
from celery.states import READY_STATES
from kombu.exceptions import LimitExceeded, OperationalError

from celery_neli import hooks
from celery_neli.backfill.plan import FAILED, IN_DOUBT, LEFT, SEND, SENT, SKIPPED, Backfilled, Plan, state_asker
from celery_neli.exceptions import ConfigurationError, NeliError, RecordError
from celery_neli.history.records import BACKFILL, SlotRecord
from celery_neli.printable import printable, printable_error, shown
from celery_neli.schedule.due import expires_of
from celery_neli.schedule.policies import OWN_OPTIONS

#: Seconds after which an attempt that was read back is looked up again: this process may have stood still.
FRESH: Final = 5.0
POLL: Final = 0.2  # seconds between two questions for the result of a task

Progress = Callable[[Backfilled], None]


class Unsent(Exception):
    """The message did not leave. `away`: because the task broker cannot be reached."""

    def __init__(self, reason: str, *, away: bool) -> None:
        super().__init__(reason)
        self.away = away


class Doubtful(Exception):
    """The message may have left."""


class Broker:
    """Sends messages of an entry over a connection of its own. `send` and `connect` block."""

    def __init__(self, app: Any, entry: Any, name: str) -> None:
        self._app, self._entry, self._name = app, entry, name
        self._scheduler = celery.beat.Scheduler(app, schedule={}, lazy=True)
        self._connection: Any = None
        self._producer: Any = None

    def connect(self) -> None:
        """Connect, if it has not. Raises `Unsent`."""
        if self._connection is None:
            self._connection = self._app.connection_for_write()
            kind = _noting(self._app.amqp.Producer)
            self._producer = kind(self._connection, auto_declare=False)
        try:
            self._connection.ensure_connection(max_retries=2, interval_start=0.2, interval_step=0.2, interval_max=0.5)
        except Exception as exc:  # noqa: BLE001 - any transport's
            raise Unsent(printable_error(exc), away=True) from None

    def send(self, slot: Backfilled) -> None:
        """Send the slot's task, once. Raises `Unsent` or `Doubtful`."""
        entry, options = self._entry, self._entry.options or {}
        sent = type(entry)(
            entry.name, entry.task, entry.last_run_at, entry.total_run_count, entry.schedule, entry.args, entry.kwargs,
            {key: value for key, value in options.items() if key not in OWN_OPTIONS}, app=self._app,
        )  # fmt: skip
        expires = expires_of(options, None, self._app.timezone)
        if expires is not None:
            sent.options["expires"] = expires
        # No term: no leader sends it, and a term is a promise that a later one has not begun.
        own = {"neli_beat_slot": slot.slot.isoformat(), "neli_beat_entry": self._name}
        headers = {"periodic_task_name": self._name, **(options.get("headers") or {}), **own}
        # A second try of kombu's own could send it twice.
        sent.options.update(headers=headers, task_id=slot.id, retry=False)
        self._producer.neli_wired = False
        try:
            self._scheduler.apply_async(sent, producer=self._producer, advance=False)
        except Exception as exc:  # noqa: BLE001 - of the application, or any transport's
            reason = exc.__cause__ or exc.__context__ or exc
            if self._producer.neli_wired:
                raise Doubtful(printable_error(reason)) from None
            raise Unsent(printable_error(reason), away=self._is_away(reason)) from None

    def close(self) -> None:
        """End."""
        if self._connection is not None:
            self._connection.release()

    def _is_away(self, error: BaseException | None) -> bool:
        transport = (*self._connection.connection_errors, *self._connection.channel_errors)
        named = tuple(each for each in transport if each.__module__ != "builtins")
        for _ in range(10):
            if error is None:
                break
            if isinstance(error, (OperationalError, LimitExceeded, ConnectionError, TimeoutError, *named)):
                return True
            error = error.__cause__
        return False


class _Noting:
    """Mixed into the app's Producer: notes that a message was given to the transport."""

    neli_wired: bool = False

    def _publish(self, *args: Any, **kwargs: Any) -> Any:
        producer: Any = self
        base: Any = super()
        producer.channel  # noqa: B018 - a lazy property: connects
        self.neli_wired = True
        return base._publish(*args, **kwargs)  # noqa: SLF001 - as kombu calls it


def _noting(base: type[Any]) -> type[Any]:
    return type(base.__name__, (_Noting, base), {})


class Sending:
    """Carries out a plan. For one thread."""

    def __init__(
        self, app: Any, plan: Plan, *, by: str, rate: float, sequential: bool, force: bool, retention: float,
        broker: Broker | None = None, sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        """`rate`: messages a second; `by`: who sends them; `retention`: of the history topic, if this makes it.
        Raises `ConfigurationError` if `sequential` is asked for and the result backend cannot tell what has ended.
        """
        self._plan, self._by, self._pause, self._force, self._retention = plan, by, 1 / rate, force, retention
        self._broker = broker or Broker(app, plan.entry, plan.name)
        self._sleep, self._clock = sleep, clock
        self._ask = state_asker(app, plan.entry) if sequential else None
        if sequential and self._ask is None:
            raise ConfigurationError(
                f"sequential: results of {shown(plan.entry.task)} are not kept, so it is not known when one has ended:"
                " set result_backend, and ignore_result to False"
            )
        self.problem = ""  # why it ended before it was done

    def run(self, progress: Progress | None = None) -> list[Backfilled]:
        """Send; return the slots of the plan with what became of each. `progress` is called with each that was to be
        sent. Raises `NeliError` if the history cannot be written and that is not forced; nothing was sent then.
        """
        plan = self._plan
        if not any(each.action == SEND for each in plan.slots):
            return plan.slots
        self._open()
        done: list[Backfilled] = []
        try:
            for each in plan.slots:
                if each.action == SEND:
                    made = replace(each, action=LEFT, note=self.problem) if self.problem else self._one(each)
                    if progress is not None:
                        progress(made)
                    done.append(made)
                else:
                    done.append(each)
        finally:
            self._broker.close()
        return done

    def _open(self) -> None:
        plan = self._plan
        if not plan.records:
            return
        try:
            plan.log.open(self._retention)
            plan.log.catch_up()
        except NeliError as exc:
            if not self._force:
                raise NeliError(
                    f"{exc}. So this backfill cannot record what it sends, and the next one would send it again; give "
                    "--force (force=True) to send it all the same"
                ) from None
            plan.records = False
            plan.notes.append(f"nothing of it is recorded: {exc}")

    def _one(self, slot: Backfilled) -> Backfilled:
        began = time.monotonic()
        attempt = uuid4().hex[:12]
        try:
            self._broker.connect()
            if (taken := self._take(slot, attempt)) is not None:
                return taken
        except Unsent as exc:
            return self._end(slot, LEFT, f"the task broker cannot be reached: {exc}")
        except (NeliError, RecordError) as exc:
            return self._end(slot, LEFT, f"Kafka: {exc}")
        outcome, action, note = hooks.SENT, SENT, slot.note
        try:
            self._broker.send(slot)
        except Doubtful as exc:
            return self._end(slot, IN_DOUBT, f"the task broker failed while it was sent: {exc}")
        except Unsent as exc:
            if exc.away:
                self.problem = f"the task broker cannot be reached: {exc}"
            outcome, action, note = (hooks.FAILED if exc.away else hooks.REFUSED), FAILED, str(exc)
        try:
            self._record(slot, outcome, attempt, error=note if action == FAILED else "")
        except (NeliError, RecordError) as exc:
            note = f"this could not be recorded, so the next backfill finds it in doubt: {exc}"
            self.problem = f"Kafka: {exc}"
        done = replace(slot, action=action, note=note)
        if action == SENT and self._ask is not None:
            done = self._wait(done)
        self._sleep(max(0.0, began + self._pause - time.monotonic()))
        return done

    def _end(self, slot: Backfilled, action: str, why: str) -> Backfilled:
        self.problem = why
        return replace(slot, action=action, note=why)

    def _take(self, slot: Backfilled, attempt: str) -> Backfilled | None:
        """Record the attempt and read it back; return what became of the slot if this attempt does not count."""
        plan, at = self._plan, slot.slot.timestamp()
        if not plan.records:
            return None
        self._record(slot, hooks.SENDING, attempt, over=slot.over)
        while True:
            sent = time.monotonic()
            plan.log.catch_up()
            fate = plan.fates.of(at)
            if attempt not in fate.won or fate.open != attempt:
                break
            if time.monotonic() - sent < FRESH:
                return None
        # Its record must not look as if this attempt were in doubt.
        self._record(slot, hooks.SKIPPED, attempt)
        other = fate.sent or fate.attempt
        by = "" if other is None else f": {printable(other.member)}"
        return replace(slot, action=SKIPPED, note=f"another process was faster{by}")

    def _record(self, slot: Backfilled, outcome: str, attempt: str, *, over: str = "", error: str = "") -> None:
        plan = self._plan
        if plan.records:
            plan.log.append(
                SlotRecord(
                    entry=plan.name, task=str(plan.entry.task), slot=slot.slot.timestamp(), outcome=outcome,
                    at=self._clock(), member=self._by, id=slot.id, policy=BACKFILL, attempt=attempt, over=over,
                    error=error[: hooks.MOST_OF_AN_ERROR],
                )
            )  # fmt: skip

    def _wait(self, slot: Backfilled) -> Backfilled:
        """Wait until the task has ended."""
        assert self._ask is not None
        while True:
            try:
                state = self._ask(slot.id)
            except Exception as exc:  # noqa: BLE001 - any backend's
                self.problem = f"the result backend does not tell when a task has ended: {printable_error(exc)}"
                return slot
            if state in READY_STATES or state == "IGNORED":
                return replace(slot, note=f"its task: {printable(state)}")
            self._sleep(POLL)


def count(done: list[Backfilled]) -> Iterator[str]:
    """Yield how many came to what, in words."""
    for action in (SEND, SENT, SKIPPED, FAILED, IN_DOUBT, LEFT):
        if number := sum(each.action == action for each in done):
            yield f"{number} {'to send' if action == SEND else action}"
