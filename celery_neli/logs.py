"""Loggers whose lines stay one line each, and loggers for a thread that must not wait.

Names, tasks, reasons and errors in a line may come from others: from a topic, a message or a broker. `escaping` gives a
logger that escapes them, wherever the line is written.

A logging handler may block: on its lock, on a full pipe, on a disk. The thread that renews the lease therefore only
queues its lines; a thread of its own hands them to the ordinary loggers, in order.
"""

from __future__ import annotations

import logging
import queue
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Final, cast

from celery_neli.printable import printable
from celery_neli.threads import original, spawn

MOST = 10_000
"""Lines that may wait for a handler that blocks; further ones are dropped."""
REMEMBERED: Final = 256
LONGEST_ARGUMENT = 1_000
"""Characters of one argument of a log line; a longer one is cut."""


def escaping(logger: logging.Logger) -> logging.Logger:
    """Return `logger`, which from now on escapes the arguments of its lines, so that none of them can begin a line of
    its own or control the terminal. Changes neither its level nor its handlers. Any thread.
    """
    logger.addFilter(_ESCAPE)
    return logger


class Lines:
    """An argument that stays several lines, such as a stack: each of them is escaped by itself."""

    def __init__(self, text: object) -> None:
        self.text = text

    def __str__(self) -> str:
        return "\n".join(printable(line, LONGEST_ARGUMENT) for line in str(self.text).split("\n"))


class _Escape(logging.Filter):
    """Makes a line's arguments printable, except numbers and `Lines`, and the messages of errors in a traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(map(_escaped, record.args))
        if isinstance(record.exc_info, tuple) and record.exc_info[1] is not None and not record.exc_text:
            record.exc_text = _traceback(record.exc_info[1])
        return True


class _Escaped:
    """An argument that is escaped when the line is formatted, whether with `%s` or with `%r`."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __str__(self) -> str:
        value = self.value
        return printable(value if isinstance(value, bytes) else str(value), LONGEST_ARGUMENT)

    def __repr__(self) -> str:
        return printable(repr(self.value), LONGEST_ARGUMENT)


def _escaped(value: object) -> object:
    if isinstance(value, str) and len(value) <= LONGEST_ARGUMENT and value.isprintable():
        return value
    return value if value is None or isinstance(value, (int, float, Lines)) else _Escaped(value)


def _traceback(error: BaseException) -> str:
    """As logging has it, but the message of each error is one line."""
    lines = []
    for part in traceback.TracebackException.from_exception(error).format():
        frame = part.startswith((" ", "\n", "Traceback (")) and "\x1b" not in part  # source, or text between errors
        lines.append(part if frame else f"{printable(part[:-1], LONGEST_ARGUMENT)}\n")
    return "".join(lines).rstrip("\n")


_ESCAPE = _Escape()


class _Queued(logging.Logger):
    """Not of logging's tree: takes no lock, knows no level but the target's, formats nothing and runs no user code."""

    def __init__(self, name: str, lines: queue.SimpleQueue[logging.LogRecord | None]) -> None:
        super().__init__(name)
        self._lines = lines

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - logging's name
        return True

    def makeRecord(  # noqa: N802 - logging's name
        self, name: str, level: int, fn: str, lno: int, msg: Any, args: Any, exc_info: Any,
        func: str | None = None, extra: Any = None, sinfo: str | None = None,
    ) -> logging.LogRecord:  # fmt: skip
        return logging.LogRecord(name, level, fn, lno, msg, args, exc_info, func, sinfo)  # not by the user's factory

    def handle(self, record: logging.LogRecord) -> None:
        if self._lines.qsize() < MOST:
            self._lines.put(record)


class BackgroundLog:
    """Loggers whose calls return at once. Lines queued before `start` are kept until then."""

    def __init__(self) -> None:
        self._lines: queue.SimpleQueue[Any] = original("queue", "SimpleQueue")()
        self._failures = logging.NullHandler()  # prints to stderr what logging itself fails at, as every handler does

    def logger(self, name: str) -> logging.Logger:
        """One that hands on, in the end, to the ordinary logger called `name`."""
        escaping(logging.getLogger(name))
        return _Queued(name, self._lines)

    def start(self) -> None:
        """Start to hand on what was and will be logged."""
        self._thread = spawn(self._run, name="neli-log")

    def stop(self, timeout: float = 1.0) -> None:
        """Hand on what is queued, for up to `timeout` seconds, and end."""
        self._lines.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._hand_on(line)
            except Exception:  # noqa: BLE001 - of a filter, handler or record factory: must not silence the next line
                self._failures.handleError(line)

    def _hand_on(self, line: logging.LogRecord) -> None:
        target = logging.getLogger(line.name)
        if target.isEnabledFor(line.levelno):
            record = logging.getLogRecordFactory()(
                line.name, line.levelno, line.pathname, line.lineno, line.msg, line.args, line.exc_info, line.funcName,
                line.stack_info,
            )  # fmt: skip
            record.__dict__.update(vars(line))  # its own time and thread
            target.handle(record)


class LogLimit:
    """Allows the first line of each key, then one every `every` seconds. Remembers at most `remembered` keys: those
    that were allowed longest ago are forgotten, and allowed again.

    Never blocks and never raises. One thread at a time.
    """

    def __init__(
        self, every: float, *, remembered: int = REMEMBERED, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._every, self._remembered, self._clock = every, remembered, clock
        #: When a line was allowed, and how many were suppressed since.
        self._allowed: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()

    def ask(self, key: Hashable) -> int | None:
        """Return how many lines of this key were suppressed since the last allowed one, or None: suppress this one."""
        now = self._clock()
        at, suppressed = self._allowed.get(key, (None, 0))
        if at is not None and 0 <= now - at < self._every:
            self._allowed[key] = at, suppressed + 1
            return None
        self._allowed[key] = now, 0
        self._allowed.move_to_end(key)
        if len(self._allowed) > self._remembered:
            self._allowed.popitem(last=False)
        return suppressed

    def allows(self, key: Hashable) -> bool:
        """Return True if a line of this key may be logged now."""
        return self.ask(key) is not None

    def expired(self) -> Iterator[tuple[Hashable, int]]:
        """Forget the keys whose span is over, and return those of which lines were suppressed in it, with how many."""
        now = self._clock()
        while self._allowed:
            key, (at, suppressed) = next(iter(self._allowed.items()))
            if 0 <= now - at < self._every:
                return
            del self._allowed[key]
            if suppressed:
                yield key, suppressed


class EntryLines:
    """Warnings that an entry may cause with each slot: each kind is logged once a minute for each entry. The next line
    says how many were suppressed; if there is none, `summarize` does. One thread at a time.
    """

    EVERY: Final = 60.0
    ENTRIES: Final = 10_000

    def __init__(self, log: logging.Logger, *, clock: Callable[[], float]) -> None:
        """`clock`: of the entries' slots, in seconds."""
        self._log = log
        self._limit = LogLimit(self.EVERY, remembered=self.ENTRIES, clock=clock)
        self._summary_at = 0.0

    def warning(self, kind: str, entry: str, msg: str, *args: Any) -> None:
        """Log this line about `entry`, unless one of its kind was logged within the last minute."""
        suppressed = self._limit.ask((kind, entry))
        if suppressed:
            self._log.warning(f"{msg} suppressed=%d", *args, suppressed)
        elif suppressed is not None:
            self._log.warning(msg, *args)

    def summarize(self, now: float) -> None:
        """Log, once a minute at most, how many suppressed lines no later line has counted: one line per kind. `now`: by
        the clock.
        """
        if 0 <= self._summary_at - now <= self.EVERY:
            return
        self._summary_at = now + self.EVERY
        found: dict[str, dict[str, int]] = {}
        for key, suppressed in self._limit.expired():
            kind, entry = cast("tuple[str, str]", key)
            found.setdefault(kind, {})[entry] = suppressed
        for kind, counts in found.items():
            shown = ", ".join(printable(each, 60) for each in list(counts)[:5]) + (", …" if len(counts) > 5 else "")
            text, count = "beat: lines suppressed about=%s count=%d entries=%d: %s", sum(counts.values())
            self._log.warning(text, kind, count, len(counts), shown)
