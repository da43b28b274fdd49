"""The pool of publishers: sends entries side by side, while more is due than one connection can send in time.

Only what goes by a template is sent so: no code of the application runs there, but for what is around
`apply_entry`. An entry has one run in the pool at a time, so its slots stay in order; until it is settled, the
watermark *settled* stays below it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from celery.utils.log import get_logger

from celery_neli.beat.publish import leased_producer
from celery_neli.beat.replicated.ledger import Run
from celery_neli.beat.replicated.publishers import Batch, Publishers, Unsent, batch_of
from celery_neli.logs import escaping
from celery_neli.schedule.heap import DueHeap

logger = escaping(get_logger(__name__))

#: Seconds for which they are left out after one of them failed: the thread that ticks waits for a broker that is gone.
CALM = 2.0
#: How many a publisher sends before it waits for the broker's answers, where the transport can.
BATCH = 20
#: Seconds after which a run that is not completed counts as stuck.
STUCK = 5.0


class Pool:
    """The runs of one scheduler and term that publishers send. The thread that ticks.

    ``send`` sends one run, on one of up to ``count`` publishers' threads, by a ``producer`` that asks ``tenure``. With
    a count of one, the thread that ticks sends everything.
    """

    def __init__(
        self, app: Any, send: Callable[[Run, Any], None], *, count: int, producer: Any = None, tenure: Any = None
    ) -> None:
        self._app, self._send, self._count, self._producer, self._tenure = app, send, count, producer, tenure
        self.publishers: Publishers[Run] = Publishers(
            count=count, connect=self._connect, send=self._send_all, batch=BATCH
        )
        #: The runs that are not settled, by entry.
        self.runs: dict[str, Run] = {}
        self._calm_until = 0.0

    @property
    def stuck(self) -> bool:
        """True if a run was submitted a while ago, and nothing has come of it."""
        first = next(iter(self.runs.values()), None)  # in the order of submission
        return first is not None and time.monotonic() - first.at > STUCK

    def is_wanted(self, heap: DueHeap, moment: float) -> bool:
        """Return True if another entry, too, is due at ``moment``, so that they should be sent side by side."""
        if self._count < 2 or time.monotonic() < self._calm_until:
            return False
        second = heap.second()
        return second is not None and second <= moment

    def submit(self, run: Run) -> None:
        """Have a publisher send the run; one is free. Does not block."""
        self.runs[run.entry.name] = run
        self.publishers.submit(run)

    def completed(self) -> list[tuple[Run, BaseException | None]]:
        """Return the runs completed since the last call, each with None if its message left or was `refused`, or with
        what went wrong. The caller takes them out of `runs` when it has dealt with them. Does not block.
        """
        finished = self.publishers.finished()
        if any(isinstance(error, Exception) and not isinstance(error, Unsent) for _, error in finished):
            self._calm_until = time.monotonic() + CALM
        return finished

    # -- on a publisher's thread --

    def _connect(self) -> Any:
        connection = self._app.connection_for_write()
        connection.ensure_connection(max_retries=1, interval_start=0.2)
        producer: Any = leased_producer(self._producer, self._tenure.twin())(connection, auto_declare=False)
        producer.neli_batch = batch_of(producer)
        return producer

    def _send_all(self, runs: list[Run], producer: Any) -> list[BaseException | None]:
        """Return what came of each: None if its message left (and the broker said so if it can), or was `refused`."""
        batch: Batch = producer.neli_batch
        batch.begin()
        marks = [batch.mark]
        outcomes: list[BaseException | None] = []
        for run in runs:
            try:
                self._send(run, producer)
                outcomes.append(None)
            except BaseException as exc:  # noqa: BLE001 - the thread that ticks judges it
                outcomes.append(exc)
            marks.append(batch.mark)
            if outcomes[-1] is not None:  # the connection may be gone
                break
        batch.settle(producer.neli_tenure.ask_finish)
        for n, (since, until) in enumerate(pairwise(marks)):
            if outcomes[n] is None and runs[n].refused is None:
                outcomes[n] = batch.failure(since, until)
                if isinstance(outcomes[n], Exception):
                    text = "beat: entry=%s was not confirmed by the task broker: %r"
                    logger.error(text, runs[n].entry.name, outcomes[n])
        return outcomes + [Unsent("another one failed before it")] * (len(runs) - len(outcomes))
