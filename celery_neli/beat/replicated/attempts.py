"""Remember the messages that could not be sent, so that a retry sends the same message for the same slot.

Instrumentation puts itself around `Scheduler.apply_entry` or `Scheduler.apply_async`; Sentry reports a check-in there
and writes its id into the message's headers. Only the first attempt goes that way; a retry has the headers already.
"""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["Attempt", "Attempts"]


class Attempt(NamedTuple):
    """One attempt to send a slot of ``entry``, which ``run`` identifies, as the entry ``sent``."""

    entry: Any
    run: str
    sent: Any
    failed: bool


class Attempts:
    """The latest attempt for each entry that is being sent or is to be retried.

    Written by the thread that ticks, and read by publishers' threads, too. Never blocks.
    """

    def __init__(self) -> None:
        self._by_name: dict[str, Attempt] = {}

    def begin(self, entry: Any, run: str, sent: Any) -> None:
        """Note that ``entry`` is about to be sent as ``sent``; ``run`` identifies the slot."""
        self._by_name[entry.name] = Attempt(entry, run, sent, failed=False)

    def failed(self, name: str) -> None:
        """Note that the attempt failed and is to be retried."""
        attempt = self._by_name.get(name)
        if attempt is not None:
            self._by_name[name] = attempt._replace(failed=True)

    def over(self, name: str) -> None:
        """Forget the entry: its slot is over."""
        self._by_name.pop(name, None)

    def retried(self, entry: Any) -> Attempt | None:
        """Return the failed attempt that sent ``entry``, or that was made for it, be it for another ``run``."""
        attempt = self._by_name.get(entry.name)
        found = attempt is not None and attempt.failed and (attempt.sent is entry or attempt.entry is entry)
        return attempt if found else None
