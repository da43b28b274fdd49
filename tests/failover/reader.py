"""Takes the messages of beats off the queue, as a worker would, and keeps who sent what for which slot."""

from __future__ import annotations

import json
import threading
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import kombu

from tests.failover.judge import Message

if TYPE_CHECKING:
    from pathlib import Path

QUEUE = "celery"
IDLE = 0.02
"""Seconds between two looks at an empty queue."""


class Reader:
    """A thread that reads one queue. What it has read is gone from the queue, and is in `messages` and in `path`.

    It takes one message at a time, by question and answer. Before the task broker goes, `pause` it: so it loses no
    message, and gets none twice, and what is judged is the beats' doing. Context manager.
    """

    def __init__(self, url: str, path: Path) -> None:
        self.messages: list[Message] = []
        self._url, self._path = url, path
        self._queue = kombu.Queue(QUEUE, kombu.Exchange(QUEUE, type="direct"), routing_key=QUEUE)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def resume(self) -> None:
        """Begin to read. The broker must be there."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)
        self._thread.start()

    def pause(self) -> None:
        """End reading, between two messages; blocks until then. Raises what went wrong, if anything did."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._thread = None
        self.check()

    def check(self) -> None:
        """Raise what went wrong, if anything did."""
        if self._failure is not None:
            raise RuntimeError(f"the reader of {self._url} has failed") from self._failure

    def _run(self) -> None:
        try:
            with kombu.Connection(self._url) as connection, self._path.open("a") as file:
                queue = self._queue.bind(connection.default_channel)
                queue.declare()
                while not self._stop.is_set():
                    found = queue.get(no_ack=True)
                    if found is None:
                        time.sleep(IDLE)
                        continue
                    message = read(found.headers, at=time.time())
                    self.messages.append(message)
                    line = [message.at, message.term, message.entry, str(message.slot), message.id]
                    file.write(json.dumps(line) + "\n")
        except BaseException as exc:  # noqa: BLE001 - told to who asks next
            self._failure = exc

    def __enter__(self) -> Reader:
        self.resume()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()


def read(headers: dict[str, Any], *, at: float) -> Message:
    """What a message's headers tell."""
    return Message(
        entry=headers["neli_beat_entry"], slot=datetime.fromisoformat(headers["neli_beat_slot"]), id=headers["id"],
        term=headers["neli_beat_term"], at=at,
    )  # fmt: skip
