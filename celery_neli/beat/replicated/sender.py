"""Send one entry: which message it is, how it goes to the task broker, and what the ledger learns of it.

Most of it runs on the thread that ticks. Publishers' threads call `send_run`, and `apply_async` through Celery.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

import celery.beat
from celery.beat import Scheduler as CelerysScheduler
from celery.beat import SchedulingError
from celery.exceptions import reraise
from celery.utils.log import get_logger

from celery_neli import hooks
from celery_neli.beat.publish import (
    PERIODIC_TASK_NAME,
    beat_headers,
    is_transport_error,
    release_connection,
    without_wrapper,
)
from celery_neli.beat.replicated.entries import EntryTable
from celery_neli.beat.replicated.ledger import Run, SlotLedger
from celery_neli.beat.replicated.templates import Templates, keep_client, publish_below
from celery_neli.beat.tenure import LeaseEnded, Tenure
from celery_neli.logs import escaping
from celery_neli.printable import printable
from celery_neli.schedule.due import Look, advance, expires_of, slot_text
from celery_neli.schedule.policies import OWN_OPTIONS

logger = escaping(get_logger(__name__))


class NoLease:
    """The lease of a scheduler that stands alone: it may do everything. See `Tenure`."""

    term = None
    wired = in_transport = False

    def __init__(self) -> None:
        self.reset(None)

    def reset(self, headers: Any) -> None:
        """Begin to send an entry."""
        self.headers, self.left = headers, 0

    def ask_start(self) -> None:
        """Allow it."""

    ask_finish = ask_start

    def may_finish(self) -> bool:
        """Return True."""
        return True

    def outliving(self, entry: str) -> AbstractContextManager[None]:
        """Change nothing: as with Celery, what is no Exception ends the beat."""
        return nullcontext()


class _Thread(threading.local):
    #: The run that the calling thread, a publisher's, sends.
    run: Run | None = None


class _Attempt(NamedTuple):
    """One attempt to send a slot of ``entry`` as ``sent``; ``task_id`` identifies the slot."""

    entry: Any
    task_id: str
    sent: Any
    failed: bool


class Sender:
    """Sends the entries of ``scheduler``, and tells ``ledger`` what came of each."""

    def __init__(self, scheduler: Any, table: EntryTable, ledger: SlotLedger) -> None:
        self.lease: Tenure | NoLease = NoLease()
        self.templates = Templates(scheduler.app)
        #: The slot (UTC) that is being run, and the entry's clock; None between runs.
        self.slot: datetime | None = None
        self.now: datetime | None = None
        self._scheduler, self._table, self._ledger = scheduler, table, ledger
        #: The run that has begun and of which the ledger knows nothing yet.
        self._run: Run | None = None
        #: The latest attempt for each entry that is being sent or is to be retried. Instrumentation puts itself around
        #: `apply_entry` or `apply_async` (Sentry reports a check-in there and writes its id into the headers): only the
        #: first attempt goes that way, a retry has the headers already.
        self._attempts: dict[str, _Attempt] = {}
        self._thread = _Thread()

    def send(self, entry: Any, found: Look, now: datetime) -> Any:
        """Send the entry for the slot that was found; return the entry after it. Blocks as publishing does.

        Raises `LeaseEnded` if the term may start nothing more.
        """
        scheduler = self._scheduler
        self.slot, self.now = found.slot, now
        try:
            advanced = scheduler.reserve(entry)
            if self._run is not None:
                self._run.advanced = advanced
            self._table.settle(entry.name)
            self._apply(entry, scheduler.producer)
        finally:
            self.slot = self.now = None
        return advanced

    def reserve(self, entry: Any) -> Any:
        """Advance the entry for the slot that is being run, or for the present if it is called outside a tick.

        Raises `LeaseEnded` if the term may start nothing more, and leaves the entry as it was.
        """
        lease = self.lease
        lease.ask_start()
        if lease.term is None:
            lease.reset({PERIODIC_TASK_NAME: str(entry.name)})
        else:
            lease.reset(beat_headers(entry, term=lease.term, slot=self.slot))
        self._run = Run(entry, self.slot)  # before it advances: a signal handler may cut in anywhere
        advanced = self._scheduler.schedule[entry.name] = advance(entry, self.slot, self.now)
        self._run.advanced = advanced
        return advanced

    def cut_off(self) -> Run | None:
        """Return the run that was cut off in the middle, if there is one: neither sent nor failed, as far as known."""
        run, self._run = self._run, None
        if run is not None:
            run.wired = self.lease.wired
        self.lease.headers = None
        return run

    def may_sync(self) -> bool:
        """Return True unless the term is over, an entry is half done, or a publisher's thread asks."""
        lease = self.lease
        half_done = self._run is not None and not lease.left
        return isinstance(lease, NoLease) or (not half_done and self._thread.run is None and lease.may_finish())

    # -- the way to the broker --

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:
        """Stand in front of the scheduler's `apply_async` and whatever a subclass has made of it.

        The lease is asked here too: eager tasks and an overridden ``Task.apply_async`` pass by the producer. In a tick,
        what the application refuses to send is logged in one line; its slot is over, and no run is counted.

        Raises `LeaseEnded` if the term ended first, and `celery.beat.SchedulingError` if it could not be sent.
        """
        if (run := self._thread.run) is not None:
            return self._transmit_run(run, entry, producer)
        scheduler, lease = self._scheduler, self.lease
        lease.ask_finish()
        try:
            with lease.outliving(entry.name):
                result = type(scheduler).apply_async(scheduler, entry, producer=producer, advance=advance, **kwargs)
        except Exception as exc:
            lease.ask_finish()
            if not self._is_over_after(exc):
                raise
            return None
        if (run := self._run) is not None:
            lease.left = lease.left or 1  # an eager task has left, too
            self._settle(run)
        self._over()
        return result

    def _is_over_after(self, exc: Exception) -> bool:
        """Report an entry that could not be sent. Return True if a tick has nothing more to say of it."""
        scheduler, lease, run = self._scheduler, self.lease, self._run
        if is_transport_error(vars(scheduler).get("connection"), exc, given=lease.in_transport):
            if run is not None:
                run.wired, run.error = lease.wired, without_wrapper(exc)
                self.failed(run)
            self._over()
            if not isinstance(lease, NoLease):
                # The next entry waits for the broker in _ensure_connected, neither lost nor counted as progress.
                release_connection(scheduler)
            return False
        if run is not None and lease.left:
            logger.error(
                "beat: sent anyway entry=%s slot=%s: what sends it raised %s after the message had left",
                run.entry.name, _named(run), repr(without_wrapper(exc)),
            )  # fmt: skip
            self._settle(run)
        elif run is not None and (self.now is not None or not isinstance(lease, NoLease)):
            run.refused = without_wrapper(exc)
            self.settled(run)
        self._over()
        return run is not None and self.now is not None

    def _settle(self, run: Run) -> None:
        if self.lease.may_finish():  # else a successor may know better by now
            self.settled(run)

    def _over(self) -> None:
        self._run = None  # only now: SystemExit may cut in anywhere
        self.lease.headers = None

    def _apply(self, entry: Any, producer: Any) -> None:
        """Send the entry by `apply_entry`; a retry by `apply_async` alone, for instrumentation has seen its slot."""
        attempt = self._failed_attempt(entry)
        if attempt is None or (attempt.sent is not entry and attempt.task_id != self._ledger.task_id(entry, self.slot)):
            self._scheduler.apply_entry(entry, producer=producer)
            return
        logger.info("beat: retrying entry=%s task=%s", entry.name, entry.task)
        try:
            self._scheduler.apply_async(entry, producer=producer, advance=False)
        except Exception as exc:  # noqa: BLE001 - as in Celery's apply_entry; the ledger knows by now
            logger.error("beat: entry=%s could not be sent: %s", entry.name, repr(exc))

    def transmit(self, entry: Any, producer: Any) -> Any:
        """Send the entry by a template if there is one for its kind, else as Celery does. Any thread."""
        scheduler, templates = self._scheduler, self.templates
        keep_client(producer)
        kind = templates.key(scheduler, entry, producer)
        if kind is None:
            attempt = self._failed_attempt(entry)
            if attempt is None or attempt.sent is not entry:
                return CelerysScheduler.apply_async(scheduler, entry, producer=producer, advance=False)
            send: Callable[[], Any] = partial(publish_below, scheduler, entry, producer)
        elif (template := templates.get(kind)) is None:
            with templates.recording(kind, producer) as recorder:
                return CelerysScheduler.apply_async(scheduler, entry, producer=recorder, advance=False)
        else:
            send = partial(templates.send, template, entry, producer)
        try:
            return send()
        except Exception as exc:  # noqa: BLE001 - as Celery does
            error = SchedulingError(f"Couldn't apply scheduled task {entry.name}: {exc}")
            reraise(SchedulingError, error, exc.__traceback__)
        finally:
            if self._thread.run is None:
                scheduler._tasks_since_sync += 1
                if scheduler.should_sync():
                    scheduler._do_sync()

    # -- side by side --

    def send_run(self, run: Run, producer: Any) -> None:
        """Send a run of the pool; raise what went wrong unless it was refused. On a publisher's thread."""
        tenure: Tenure = producer.neli_tenure
        tenure.reset(run.headers)
        self._thread.run = run
        try:
            self._apply(run.sent, producer)
        finally:
            self._thread.run = tenure.headers = None
            run.wired = tenure.wired
        if run.error is not None:
            raise run.error
        if run.refused is None and not tenure.left:
            raise LeaseEnded("nothing left")

    def _transmit_run(self, run: Run, entry: Any, producer: Any) -> Any:
        try:
            return self.transmit(entry, producer)
        except Exception as exc:
            tenure = producer.neli_tenure
            if tenure.left or is_transport_error(producer.connection, exc, given=tenure.in_transport):
                run.error = exc
                raise
            run.refused = without_wrapper(exc)
            return None  # the thread that ticks logs it

    # -- the message, and its attempts --

    def message_of(self, entry: Any, slot: datetime | None) -> Any:
        """Return the entry without what is not part of its message, with the task id of its slot.

        An id among the entry's own options goes before that. The message of a retry is that of the first attempt.
        """
        task_id = self._ledger.task_id(entry, slot)
        if task_id is None:
            return self._bare(entry, slot)
        attempt = self._failed_attempt(entry)
        if attempt is not None and attempt.task_id == task_id:
            return attempt.sent
        sent = self._bare(entry, slot)
        if "task_id" not in sent.options:
            sent = _with_options(entry, dict(sent.options, task_id=task_id))
        self._attempts[entry.name] = _Attempt(entry, task_id, sent, failed=False)
        return sent

    def _bare(self, entry: Any, slot: datetime | None) -> Any:
        given = entry.options
        if given.keys().isdisjoint(OWN_OPTIONS) and not isinstance(given.get("expires"), (datetime, str)):
            return entry
        options = {name: value for name, value in given.items() if name not in OWN_OPTIONS}
        if (at := expires_of(given, slot, self._scheduler.app.timezone)) is not None:
            options["expires"] = at
        return _with_options(entry, options)

    def settled(self, run: Run) -> None:
        """Note that the run's message has left, or that the application refused to send it."""
        name, error = run.entry.name, run.refused
        self.forget(name)
        if error is not None:
            celery.beat.error(  # in Celery's logger, where users look for such lines
                "beat: slot refused entry=%s slot=%s: %s; it is not sent, and later slots run at their times",
                printable(name), _named(run), hooks.error_text(error),
            )  # fmt: skip
            logger.debug("beat: what refused entry=%s", name, exc_info=error)
            run.advanced.total_run_count = run.entry.total_run_count
        self._ledger.settled(run)

    def failed(self, run: Run) -> None:
        """Note that it could not be sent: the ledger may want it retried."""
        attempt = self._attempts.get(run.entry.name)
        if attempt is not None:
            self._attempts[run.entry.name] = attempt._replace(failed=True)
        self._ledger.failed(run)

    def forget(self, name: str) -> None:
        """Forget what was attempted for the entry: its slot is over."""
        self._attempts.pop(name, None)

    def _failed_attempt(self, entry: Any) -> _Attempt | None:
        """Return the failed attempt that sent ``entry``, or that was made for it, be it for another slot."""
        attempt = self._attempts.get(entry.name)
        if attempt is None or not attempt.failed or (attempt.sent is not entry and attempt.entry is not entry):
            return None
        return attempt


def _with_options(entry: Any, options: dict[str, Any]) -> Any:
    changed = object.__new__(type(entry))  # not copy(): it would construct the entry again, without its app
    changed.__dict__.update(vars(entry), options=options)
    return changed


def _named(run: Run) -> str:
    return "-" if run.slot is None else slot_text(run.entry, run.slot)
