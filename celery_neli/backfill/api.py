"""`celery_neli.periodic.backfill`, and the steps of it for the command line."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any, Final

from celery_neli.backfill.plan import MOST, Backfilled, Plan, Wanted, make_plan, span_of
from celery_neli.backfill.sending import Progress, Sending
from celery_neli.config import setting
from celery_neli.exceptions import ConfigurationError
from celery_neli.logs import escaping
from celery_neli.periodic.editor import ScheduleEditor
from celery_neli.printable import shown

LIMIT: Final = 1_000
RATE: Final = 10.0  # messages a second
FASTEST: Final = 10_000.0

logger = escaping(logging.getLogger("celery_neli.backfill"))


def backfill(
    app: Any,
    name: str,
    start: datetime,
    end: datetime,
    *,
    dry_run: bool = False,
    in_doubt: str = "skip",
    limit: int = LIMIT,
    rate: float = RATE,
    sequential: bool = False,
    force: bool = False,
    by: str | None = None,
) -> list[Backfilled]:
    """Send the slots of an entry from `start` to `end` that were not sent, oldest first, each with its own id.

    The slots are those of its schedule as it is now, both ends included. What ran is known by the run history, and by
    the result backend if it can tell. What is sent is recorded there, so the same call again sends nothing twice; of
    two calls at once, one sends a slot. Blocks for a second or two, and while it sends; may be called from any thread.

    Args:
        app: The Celery app. Its tasks must be loaded.
        name: The entry, of `beat_schedule` or of the runtime schedule; it may be paused.
        start: The begin of the span (naive: in UTC).
        end: Its end, which must be past.
        dry_run: Only say what would be done; write nothing.
        in_doubt: "send" or "skip" slots that may have been sent.
        limit: How many slots the span may have, up to 100,000.
        rate: How many messages are sent in a second, at most.
        sequential: Wait for the end of each task, by the result backend, before the next is sent.
        force: Also send slots of which the history cannot tell if they ran, and if it cannot be written.
        by: Who does this, for the history; by default user@host.

    Returns:
        Each slot with what was done. If the task broker or Kafka fails, the slots behind are "left", and the same call
        goes on with them.

    Raises:
        ConfigurationError: A value is wrong; nothing was sent.
        NeliError: There is no such entry, a beat may send a slot of the span yet, the history does not reach back so
            far, or Kafka does not answer; nothing was sent.
    """
    job = Job(
        app, name, start, end, in_doubt=in_doubt, limit=limit, rate=rate, sequential=sequential, force=force, by=by
    )
    try:
        return job.plan.slots if dry_run else job.run()
    finally:
        job.close()


class Job:
    """One backfill: its `plan`, and then `run`, if it is to be carried out. `close` it. For one thread."""

    def __init__(
        self, app: Any, name: str, start: datetime, end: datetime, *, in_doubt: str, limit: int, rate: float,
        sequential: bool, force: bool, by: str | None,
    ) -> None:  # fmt: skip
        """Make the plan; raises as `backfill`."""
        if in_doubt not in ("send", "skip"):
            raise ConfigurationError(f"in_doubt = {shown(in_doubt)}: give one of send, skip")
        if type(limit) is not int or not 1 <= limit <= MOST:
            raise ConfigurationError(f"limit = {shown(limit)}: give a whole number from 1 to {MOST}")
        if type(rate) not in (int, float) or not 0 < rate <= FASTEST:
            raise ConfigurationError(f"rate = {shown(rate)}: give a number of messages a second, up to {FASTEST:g}")
        editor = ScheduleEditor(app, by=by)
        begin, finish = span_of(start, end)
        wanted = Wanted(start=begin, end=finish, limit=limit, in_doubt=in_doubt, force=force)
        self.plan: Plan = make_plan(editor, name, wanted, log=logger)
        try:
            self._sending = Sending(
                app, self.plan, by=editor.by, rate=rate, sequential=sequential, force=force,
                retention=setting(app, "neli_history_retention"),
            )  # fmt: skip
        except BaseException:
            self.close()
            raise

    @property
    def problem(self) -> str:
        """Return why it ended before it was done, "" if it did not."""
        return self._sending.problem

    def run(self, progress: Progress | None = None) -> list[Backfilled]:
        """Send; return every slot with what was done."""
        return self._sending.run(progress)

    def close(self) -> None:
        """End its clients."""
        self.plan.log.close()
