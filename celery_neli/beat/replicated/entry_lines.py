"""The log lines about entries that are defined at runtime: few, however many there are. Pure but for the log."""

from __future__ import annotations

import logging

from celery_neli.logs import LogLimit, escaping

#: Seconds between two log lines of one kind about one entry, and how many entries are remembered.
LOGGED_EVERY, LOGGED_APART = 60.0, 1000
#: Seconds between two lines about one entry that cannot be read; in them at most `MANY` such lines are logged.
REFUSED_EVERY, MANY = 60.0, 20

logger = escaping(logging.getLogger("celery_neli.beat.replicated.states"))


class EntryLines:
    """Logs what becomes of entries; ``level`` is that of changes."""

    def __init__(self) -> None:
        self.level = logging.INFO
        self.limit = LogLimit(LOGGED_EVERY, remembered=LOGGED_APART)
        self._refused = LogLimit(REFUSED_EVERY)

    def changed(self, name: str, what: str) -> None:
        """Log what was done to an entry."""
        if not logger.isEnabledFor(self.level):
            return  # nor does it use up the limit of the lines that are shown
        if (suppressed := self.limit.ask((what, name))) is not None:
            more = f" suppressed={suppressed}" if suppressed else ""
            logger.log(self.level, "schedule: entry=%s was %s%s", name, what, more)

    def left_out(self, name: str, why: str) -> None:
        """Log that an entry cannot be run here."""
        if self.limit.allows(name) and any(self._refused.allows(line) for line in range(MANY)):
            logger.error("schedule: entry=%s cannot be read here, and is left out: %s", name, why)

    def hidden(self, name: str) -> None:
        """Log that a definition is not used, because beat_schedule has an entry of that name."""
        if self.limit.allows(("hidden", name)):
            logger.warning("schedule: entry=%s is in beat_schedule: what was put under its name is not used", name)
