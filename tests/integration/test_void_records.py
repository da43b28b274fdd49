"""A process is killed between a void definition and its repair, on a real broker, while a beat leads."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from celery_neli.config import Config
from celery_neli.schedule_topic import topic as schedule_client
from celery_neli.schedule_topic.codec import ENTRY, Definition, decode_definition, encode_definition, succeeding
from tests.integration.test_ghosts import Beats
from tests.unit.beats import START

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.integration
LOG = logging.getLogger("celery_neli.schedule")
MADE = Definition(task="t", schedule="PT1H", since=START)
#: Writes a record, says so, and waits to be killed: it never gets to the repair.
WRITER = """
import logging, sys, time
from celery_neli.config import Config
from celery_neli.schedule_topic.topic import write
kafka, group, name, value = sys.argv[1:]
write(Config(group=group, kafka=kafka), [("e", name, value.encode())], log=logging.getLogger("w"), timeout=30)
print("written", flush=True)
time.sleep(60)
"""


def test_the_beat_that_leads_repairs_what_a_killed_writer_left(kafka: str, names: Callable[[str], str]) -> None:
    """What counts is the last record again, so that a process that starts after compaction reads it."""
    config = Config(group=names("group"), kafka=kafka)
    with ExitStack() as stack:
        beats = Beats(config, stack)
        first = succeeding(MADE, None)
        counts = succeeding(Definition(task="u", schedule="PT1H", since=START), first)
        for each in (first, counts):
            schedule_client.write(config, [(ENTRY, "one", encode_definition(each))], log=LOG)
        beats.until(lambda: all("one" in beats.running(beat) for beat in beats.world.beats), "the entry")
        void = succeeding(Definition(task="v", schedule="PT1H", since=START), first)
        command = [sys.executable, "-c", WRITER, kafka, config.group, "one", encode_definition(void).decode()]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "written\n"
            os.kill(writer.pid, signal.SIGKILL)
        written: list[Definition] = []

        def is_repaired() -> bool:
            written.clear()
            schedule_client.read_all(
                config, log=LOG,
                each=lambda record: written.append(decode_definition(record.value))
                if record.key == b"e/one" and record.value else None,
            )  # fmt: skip
            return written[-1].revision > void.revision

        beats.until(is_repaired, "the repair")
        assert [each.task for each in written] == ["t", "u", "u"]
        assert written[-1].version == counts.version
        assert [beat.entry("one").task for beat in beats.world.beats] == ["u", "u"]
