"""What this worker did with leader-only tasks that it could not run: for `celery inspect neli`.

    counts.forwarded["billing"], counts.sent_back["billing"], counts.skipped["billing"]

Counted in the worker's main process since its start, by role.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Counts:
    """Messages by role. Read by any thread, written by those of the worker's main process."""

    forwarded: Counter[str] = field(default_factory=Counter)
    """Reached a standby by another queue, and were published to the role's own."""
    sent_back: Counter[str] = field(default_factory=Counter)
    """Went back to their queue unstarted, as this worker leads no more."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Acknowledged unrun, as `on_standby="skip"` asks."""

    def as_dict(self) -> dict[str, dict[str, int]]:
        """For a reply to a remote control command: {"forwarded": {role: number}, ...}."""
        return {
            "forwarded": dict(self.forwarded),
            "sent_back": dict(self.sent_back),
            "skipped": dict(self.skipped),
        }


counts = Counts()
