"""Log lines from a thread that must not wait."""

from __future__ import annotations

import logging
import re
import threading
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import pytest

import celery_neli
from celery_neli.logs import LONGEST_ARGUMENT, MOST_QUEUED, BackgroundLog, Lines, escaping
from tests.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


class Handler(logging.Handler):
    """Keeps what it is given; waits or fails on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[logging.LogRecord] = []
        self.failing = False
        self.go = threading.Event()
        self.go.set()

    def emit(self, record: logging.LogRecord) -> None:
        self.go.wait(10)
        if self.failing:
            raise RuntimeError("no disk")
        self.seen.append(record)


@pytest.fixture
def handler() -> Iterator[Handler]:
    target, handler = logging.getLogger("celery_neli.test"), Handler()
    target.addHandler(handler)
    target.setLevel(logging.INFO)
    yield handler
    handler.go.set()
    target.removeHandler(handler)
    target.setLevel(logging.NOTSET)


@pytest.fixture
def lines(handler: Handler) -> Iterator[BackgroundLog]:
    lines = BackgroundLog()
    lines.start()
    yield lines
    handler.go.set()
    lines.stop(5)


def test_lines_arrive_in_order_with_the_time_and_thread_of_their_making(lines: BackgroundLog, handler: Handler) -> None:
    """The handler gets the record that it would get without the queue."""
    log = lines.logger("celery_neli.test")
    for number in range(3):
        log.info("line %d", number)
    wait_until(lambda: len(handler.seen) == 3, timeout=5, what="the lines")
    assert [record.getMessage() for record in handler.seen] == ["line 0", "line 1", "line 2"]
    assert {record.thread for record in handler.seen} == {threading.get_ident()}
    assert {record.module for record in handler.seen} == {"test_logs"}


def test_the_targets_level_counts(lines: BackgroundLog, handler: Handler) -> None:
    """It is asked when the line is handed on."""
    log = lines.logger("celery_neli.test")
    log.debug("no")
    log.info("yes")
    wait_until(lambda: handler.seen, timeout=5, what="the line")
    assert [record.getMessage() for record in handler.seen] == ["yes"]


def test_a_handler_that_fails_does_not_silence_the_next_line(
    lines: BackgroundLog, handler: Handler, capsys: pytest.CaptureFixture[str]
) -> None:
    """Logging's own word on it goes to stderr."""
    log = lines.logger("celery_neli.test")
    handler.failing = True
    printed: list[str] = []
    log.info("lost")
    wait_until(lambda: printed.append(capsys.readouterr().err) or "no disk" in "".join(printed), timeout=5, what="it")
    handler.failing = False
    log.info("next")
    wait_until(lambda: handler.seen, timeout=5, what="the next line")


def test_a_handler_that_blocks_holds_up_nobody_and_costs_bounded_memory(lines: BackgroundLog, handler: Handler) -> None:
    """A full pipe behind stderr must not stop heartbeats, nor fill the memory of a process that lives on."""
    log = lines.logger("celery_neli.test")
    handler.go.clear()
    for number in range(MOST_QUEUED + 100):
        log.info("line %d", number)
    handler.go.set()
    lines.stop(10)
    assert MOST_QUEUED <= len(handler.seen) <= MOST_QUEUED + 1


def test_a_record_factory_of_the_users_runs_on_the_logs_thread(lines: BackgroundLog, handler: Handler) -> None:
    """It may add what formatters want, and it may block."""
    plain = logging.getLogRecordFactory()

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = plain(*args, **kwargs)
        record.made_by = threading.current_thread().name
        return record

    logging.setLogRecordFactory(factory)
    try:
        lines.logger("celery_neli.test").info("line")
        wait_until(lambda: handler.seen, timeout=5, what="the line")
    finally:
        logging.setLogRecordFactory(plain)
    assert vars(handler.seen[0])["made_by"] == "neli-log"


@pytest.mark.parametrize(
    ("line", "arguments", "shown"),
    [
        ("entry=%s", ("tidy up – größer",), "entry=tidy up – größer"),
        ("entry=%s", ("a\nERROR forged",), "entry=a\\nERROR forged"),
        ("entry=%s by=%s", ("a\x1b[2J", "b\u202e"), "entry=a\\x1b[2J by=b\\u202e"),
        ("entry=%r", ("a\nb",), "entry='a\\nb'"),
        ("entry=%s", ("\ud800",), "entry=\\ud800"),
        ("key=%s", (b"a\xff\n",), "key=a\\xff\\n"),
        ("reason=%s", (ValueError("no\nsuch\x07"),), "reason=no\\nsuch\\x07"),
        ("reason=%r", (ValueError("no\nsuch"),), "reason=ValueError('no\\nsuch')"),
        ("key=%s", (PurePath("a\nb"),), "key=a\\nb"),
        ("%d of %.1f s, %s", (3, 2.5, None), "3 of 2.5 s, None"),
    ],
)
def test_no_argument_of_a_line_makes_another_line_or_reaches_the_terminal(
    handler: Handler, lines: BackgroundLog, line: str, arguments: tuple[object, ...], shown: str
) -> None:
    """This holds for lines that are logged at once and for queued ones. Other text, in any language, is unchanged."""
    escaping(logging.getLogger("celery_neli.test")).info(line, *arguments)
    lines.logger("celery_neli.test").info(line, *arguments)
    wait_until(lambda: len(handler.seen) == 2, timeout=5, what="the lines")
    assert [each.getMessage() for each in handler.seen] == [shown, shown]


def test_what_stays_several_lines_is_escaped_line_by_line(handler: Handler) -> None:
    """A stack from another process has its lines."""
    escaping(logging.getLogger("celery_neli.test")).info("failed: %s", Lines("a\x1b[2J\n  there"))
    assert handler.seen[0].getMessage() == "failed: a\\x1b[2J\n  there"


def test_the_message_of_an_error_makes_no_line_in_its_traceback(handler: Handler, lines: BackgroundLog) -> None:
    """Nor does that of the error before it; the frames stay as they are."""
    try:
        try:
            raise KeyError("a\n[2026] ERROR forged")
        except KeyError as exc:
            raise ValueError("b\n[2026] ERROR forged\x1b[2J") from exc
    except ValueError:
        escaping(logging.getLogger("celery_neli.test")).exception("failed")
        lines.logger("celery_neli.test").exception("failed")
    wait_until(lambda: len(handler.seen) == 2, timeout=5, what="the lines")
    for record in handler.seen:
        shown = logging.Formatter().format(record).splitlines()
        assert shown[:2] == ["failed", "Traceback (most recent call last):"]
        assert shown[-1] == "ValueError: b\\n[2026] ERROR forged\\x1b[2J"
        assert not any(line.startswith("[2026]") for line in shown)
        assert sum(line.startswith("  File ") for line in shown) == 2


def test_a_huge_argument_makes_no_huge_line(handler: Handler) -> None:
    """Names and errors have no limit of their own in a record that anybody may write."""
    escaping(logging.getLogger("celery_neli.test")).info("%s", "x" * 100_000)
    assert len(handler.seen[0].getMessage()) == LONGEST_ARGUMENT


def test_every_logger_of_the_package_escapes() -> None:
    """A logger that is made without it would print what others wrote raw."""
    sources = [each for each in Path(celery_neli.__file__).parent.rglob("*.py") if each.name != "logs.py"]
    silent = (".addFilter(", ".isEnabledFor(")  # they print nothing
    made = re.compile(r"(?<!def )\b(?:getLogger|get_logger)\(")
    raw = [
        f"{source.name}: {line.strip()}"
        for source in sources
        for line in source.read_text().splitlines()
        if made.search(line) and not any(each in line for each in ("escaping(", "ScheduleTopic(", *silent))
    ]
    assert raw == []  # ScheduleTopic has a background log of that name, which escapes
