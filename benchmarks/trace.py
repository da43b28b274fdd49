"""Count the files of the package that three journeys pass: `python -m benchmarks.trace`.

- A message, from the engine's tick that finds its slot due to the wire. A led beat with an embedded Kafka and the
  memory transport runs an entry; the third message is traced, in the thread that ticks and in the one that publishes.
  What the beat does in the same turn before that tick (it reads the schedule topic, it waits) is not part of it.
- The question "may I send", as that message asks it.
- `periodic.put`, from the call to the heap of the beat that leads, with the fakes of the unit tests for Kafka and for
  what reads it and writes it, whose own calls do not count. What the beat does in the same turn once the entry is in
  the heap (it claims slots) is not part of it.

A file counts if one of its functions is called. What runs when modules are imported does not count.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from celery import Celery
from kombu import Producer

import celery_neli
from celery_neli.embedded import EmbeddedKafka
from celery_neli.exceptions import NeliError

PACKAGE = f"{Path(celery_neli.__file__).parent}/"
TRACED = 3
ENGINE, HEAP = "beat/replicated/engine.py", "schedule/heap.py"
PATIENCE = 60.0
FAKES = "tests/unit/fakes.py"
MOST_MESSAGE, MOST_MAY_SEND, MOST_PUT = 15, 3, 20


class Journeys(NamedTuple):
    """The files that each journey passes, in the order in which it reaches them, with the first function of each."""

    message: dict[str, str]
    may_send: dict[str, str]
    put: dict[str, str]


class Call(NamedTuple):
    at: float
    thread: int
    file: str
    name: str
    depth: int


class Calls:
    """The latest calls of functions of the package, in every thread that starts after `watch`."""

    def __init__(self) -> None:
        self.latest: deque[Call] = deque(maxlen=200_000)

    @contextmanager
    def watch(self) -> Iterator[None]:
        threading.setprofile(self._note)
        sys.setprofile(self._note)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)  # type: ignore[arg-type]

    def _note(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE) and code.co_name != "<module>":
            depth = 0
            caller = frame.f_back
            while caller is not None:
                if caller.f_code.co_filename.endswith(FAKES):
                    return
                depth, caller = depth + 1, caller.f_back
            file = code.co_filename.removeprefix(PACKAGE)
            self.latest.append(Call(time.time(), threading.get_ident(), file, code.co_name, depth))


def files(calls: list[Call]) -> dict[str, str]:
    found: dict[str, str] = {}
    for each in calls:
        found.setdefault(each.file, each.name)
    return found


def under(calls: list[Call], name: str) -> list[Call]:
    """Return the calls of the function of this name, and those that it makes."""
    found: list[Call] = []
    outermost: dict[int, int] = {}  # the depth of the call that is under way, by thread
    for each in calls:
        if each.depth <= outermost.get(each.thread, each.depth):
            outermost.pop(each.thread, None)
            if each.name == name:
                outermost[each.thread] = each.depth
        if each.thread in outermost:
            found.append(each)
    return found


def message() -> tuple[dict[str, str], dict[str, str]]:
    """Return the files that a message passes, and those of the question whether it may be sent."""
    calls, arrived = Calls(), 0
    journey: list[Call] = []

    class Wire(Producer):  # type: ignore[misc]
        def _publish(self, body: Any, priority: Any, kind: Any, encoding: Any, headers: Any, *args: Any) -> Any:
            nonlocal arrived
            arrived += 1
            if arrived == TRACED:
                due = datetime.fromisoformat(headers["neli_beat_slot"]).timestamp()
                threads = (ticking, threading.get_ident())
                since = [each for each in list(calls.latest) if each.at >= due and each.thread in threads]
                began = max(n for n, each in enumerate(since) if (each.file, each.name) == (ENGINE, "tick"))
                journey.extend(since[began:])
            return super()._publish(body, priority, kind, encoding, headers, *args)

    with EmbeddedKafka() as kafka:
        app = Celery("trace", broker="memory://", set_as_current=False)
        app.conf.update(
            neli_group="trace",
            neli_kafka=kafka.bootstrap_servers,
            beat_schedule={"traced": {"task": "t", "schedule": 1.0}},
        )
        ticking = threading.get_ident()
        with calls.watch():
            beat = celery_neli.Scheduler(app, Producer=Wire)
            try:
                deadline = time.monotonic() + PATIENCE
                while not journey and time.monotonic() < deadline:
                    time.sleep(min(beat.tick(), 0.05))
            finally:
                beat.close()
    if not journey:
        raise NeliError(f"{arrived} messages were sent within {PATIENCE:g} s")
    return files(journey), files(under(journey, "may_start"))


def put() -> dict[str, str]:
    """Return the files from `periodic.put` to the heap of the beat that leads."""
    from tests.unit.beats import World

    world = World({"static": 60.0})
    leader = world.leader()
    world.put("first", 60.0)
    world.ticks(2.0)
    calls = Calls()
    with calls.watch():
        world.put("traced", 60.0)
        leader.turn()
    leader.entry("traced")  # raises StopIteration if it is not in the heap
    journey = list(calls.latest)
    arrived = next(n for n, each in enumerate(journey) if (each.file, each.name) == (HEAP, "put"))
    return files(journey[: arrived + 1])


def journeys() -> Journeys:
    passed, asked = message()
    return Journeys(message=passed, may_send=asked, put=put())


def main() -> None:
    logging.disable(logging.WARNING)
    found = journeys()
    for title, passed, most in (
        ("a message, from due to the wire", found.message, MOST_MESSAGE),
        ("may I send", found.may_send, MOST_MAY_SEND),
        ("periodic.put, to the leader's heap", found.put, MOST_PUT),
    ):
        print(f"{title}: {len(passed)} files (at most {most})")
        for file, function in passed.items():
            print(f"    {file}: {function}")


if __name__ == "__main__":
    main()
