"""A light member without Celery: `python -m tests.smoke.member NAME GROUP KAFKA RECORD`. Ends cleanly on SIGTERM."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from pathlib import Path

from celery_neli import Config, Neli
from celery_neli.election.grant import LeaderEvent
from celery_neli.election.leadership import Standing
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

    def standing() -> Standing:
        grant, now = neli.grant("leader"), neli.clock()
        return Standing(term=grant.term, until=grant.until, leading=grant.leading(now), held=grant.held(now))

    recorder.append(Recorder(Path(record), standing, interval=0.02))
    with neli:
        while not ended.is_set():
            neli.pulse(0.5, cancel=ended)
            ended.wait(0.1)


if __name__ == "__main__":
    main(*sys.argv[1:])
