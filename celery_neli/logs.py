"""Loggers that escape what others wrote, loggers for a thread that must not wait, and limits on repeated lines.

Names, tasks, reasons and errors in a line may come from a topic, a message or a broker: `escaping` makes a logger
escape them, whichever handler writes the line. A handler may block: on its lock, on a full pipe, on a disk. So the
thread that renews the lease only queues its lines in a `BackgroundLog`, whose own thread passes them on, in order.
"""

from __future__ import annotations

import logging
import queue
import time
import traceback
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from celery_neli.printable import printable
from celery_neli.threads import original, spawn

MOST_QUEUED: Final = 10_000  # lines that may wait for a handler that blocks; further ones are dropped
LONGEST_ARGUMENT: Final = 1_000  # characters of one argument of a log line; a longer one is cut
REMEMBERED: Final = 256


def escaping(logger: logging.Logger) -> logging.Logger:
    """Return `logger`, which escapes the arguments of its lines from now on: none can begin another line or control the
    terminal. Its level and handlers stay as they are. May be called from any thread.
    """
    logger.addFilter(_escape)
    return logger


@dataclass(frozen=True, slots=True)
class Lines:
    """An argument that stays several lines, each of them escaped. A function is called when the line is formatted."""

    text: object

    def __str__(self) -> str:
        text = str(self.text() if callable(self.text) else self.text)
        return "\n".join(printable(line, LONGEST_ARGUMENT) for line in text.split("\n"))


def _escape(record: logging.LogRecord) -> bool:
    """Escape a line's arguments, except numbers and `Lines`, and the messages of errors in its traceback."""
    if isinstance(record.args, tuple):
        record.args = tuple(map(_escaped, record.args))
    if isinstance(record.exc_info, tuple) and record.exc_info[1] is not None and not record.exc_text:
        record.exc_text = _traceback(record.exc_info[1])
    return True


@dataclass(frozen=True, slots=True, repr=False)
class _Escaped:
    """An argument that is escaped when the line is formatted, with `%s` or with `%r`."""

    value: object

    def __str__(self) -> str:
        return printable(self.value if isinstance(self.value, bytes) else str(self.value), LONGEST_ARGUMENT)

    def __repr__(self) -> str:
        return printable(repr(self.value), LONGEST_ARGUMENT)


def _escaped(value: object) -> object:
    if isinstance(value, str) and len(value) <= LONGEST_ARGUMENT and value.isprintable():
        return value
    return value if value is None or isinstance(value, (int, float, Lines)) else _Escaped(value)


def _traceback(error: BaseException) -> str:
    """Return the traceback as logging formats it, but with the message of each error on one line."""
    lines = []
    for part in traceback.TracebackException.from_exception(error).format():
        frame = part.startswith((" ", "\n", "Traceback (")) and "\x1b" not in part  # source, or text between errors
        lines.append(part if frame else f"{printable(part[:-1], LONGEST_ARGUMENT)}\n")
    return "".join(lines).rstrip("\n")


class BackgroundLog:
    """Loggers whose calls return at once. Lines queued before `start` are kept until then."""

    def __init__(self) -> None:
        self._lines: queue.SimpleQueue[Any] = original("queue", "SimpleQueue")()
        self._failures = logging.NullHandler()  # prints to stderr what fails within logging, as every handler does

    def logger(self, name: str) -> logging.Logger:
        """Return a logger whose lines go, later, to the ordinary logger called `name`."""
        escaping(logging.getLogger(name))
        return _Queued(name, self._lines)

    def start(self) -> None:
        """Start to pass on the lines, also those that are queued already."""
        self._thread = spawn(self._run, name="neli-log")

    def stop(self, timeout: float = 1.0) -> None:
        """Pass on what is queued, for up to `timeout` seconds, and end."""
        self._lines.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._pass_on(line)
            except Exception:  # noqa: BLE001 - a user's filter, handler or record factory must not silence later lines
                self._failures.handleError(line)

    def _pass_on(self, line: logging.LogRecord) -> None:
        target = logging.getLogger(line.name)
        if target.isEnabledFor(line.levelno):
            record = logging.getLogRecordFactory()(
                line.name, line.levelno, line.pathname, line.lineno, line.msg, line.args, line.exc_info, line.funcName,
                line.stack_info,
            )  # fmt: skip
            record.__dict__.update(vars(line))  # its own time and thread
            target.handle(record)


class _Queued(logging.Logger):
    """A logger outside logging's tree: it takes no lock, formats nothing, runs no user code, lets every level pass."""

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
        if self._lines.qsize() < MOST_QUEUED:
            self._lines.put(record)


class LogLimit:
    """Allows the first line of each key, then one every `every` seconds. Never blocks or raises; for one thread.

    It remembers the `remembered` keys that it allowed last, and allows others again.
    """

    def __init__(
        self, every: float, *, remembered: int = REMEMBERED, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._every, self._remembered, self._clock = every, remembered, clock
        #: When a line was allowed, and how many were suppressed since.
        self._allowed: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()

    def ask(self, key: Hashable) -> int | None:
        """Return None to suppress a line of this key, else how many were suppressed since the last allowed one."""
        now = self._clock()
        at, suppressed = self._allowed.get(key, (float("-inf"), 0))
        if 0 <= now - at < self._every:
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

    def expired(self) -> Iterator[tuple[Any, int]]:
        """Forget the keys whose time is over. Yield those of which lines were suppressed, with how many."""
        now = self._clock()
        while self._allowed:
            key, (at, suppressed) = next(iter(self._allowed.items()))
            if 0 <= now - at < self._every:
                return
            del self._allowed[key]
            if suppressed:
                yield key, suppressed


class EntryLines:
    """Logs each kind of warning once a minute for each entry, as an entry may cause one with each slot.

    The next line says how many were suppressed; if there is none, `summarize` does. `clock` is that of the entries'
    slots, in seconds. For one thread.
    """

    EVERY: Final = 60.0
    ENTRIES: Final = 10_000

    def __init__(self, log: logging.Logger, *, clock: Callable[[], float]) -> None:
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
        """Log a line per kind about suppressed lines that no later one has counted, once a minute (`now`: the time)."""
        if 0 <= self._summary_at - now <= self.EVERY:
            return
        self._summary_at = now + self.EVERY
        found: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for (kind, entry), suppressed in self._limit.expired():
            found[kind][entry] = suppressed
        for kind, counts in found.items():
            shown = ", ".join(printable(each, 60) for each in list(counts)[:5]) + (", …" if len(counts) > 5 else "")
            text, count = "beat: lines suppressed about=%s count=%d entries=%d: %s", sum(counts.values())
            self._log.warning(text, kind, count, len(counts), shown)
