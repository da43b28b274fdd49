"""A light member without Celery: `python -m tests.smoke.member NAME GROUP KAFKA RECORD`. Ends cleanly on SIGTERM."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from pathlib import Path

from celery_neli import Config, Neli
from celery_neli.election.role_state import LeaderEvent
from tests.smoke.recorder import Recorder


def main(name: str, group: str, kafka: str, record: str) -> None:
    """Join, pulse until SIGTERM, hand over."""
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s: %(levelname)s] %(message)s")
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    recorder: list[Recorder] = []

    def barrier(event: LeaderEvent) -> None:
        recorder[0].note(type(event).__name__.removeprefix("Leader").lower(), event.term)

    neli = Neli(Config(group=group, kafka=kafka, name=name), barrier)

    recorder.append(Recorder(Path(record), neli.role("leader").standing, interval=0.02))
    with neli:
        while not ended.is_set():
            neli.pulse(0.5, cancel=ended)
            ended.wait(0.1)


if __name__ == "__main__":
    main(*sys.argv[1:])
