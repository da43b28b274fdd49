"""How many files a reader must know to follow a message, the question whether it may be sent, and `periodic.put`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import trace

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def journeys() -> trace.Journeys:
    """In a process of its own: what other tests have imported into this one takes part in every call of Celery."""
    code = "import json; from benchmarks import trace; print(json.dumps(trace.journeys()))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return trace.Journeys(*json.loads(told.splitlines()[-1]))


def test_a_message_passes_few_files(journeys: trace.Journeys) -> None:
    """From the moment at which its slot is due to the wire."""
    assert len(journeys.message) <= trace.MOST_MESSAGE, journeys.message


def test_the_question_may_i_send_passes_few_files(journeys: trace.Journeys) -> None:
    """It is asked for each message, and safety rests on it."""
    assert len(journeys.may_send) <= trace.MOST_MAY_SEND, journeys.may_send


def test_a_new_entry_passes_few_files(journeys: trace.Journeys) -> None:
    """From `periodic.put` to the heap of the beat that leads."""
    assert len(journeys.put) <= trace.MOST_PUT, journeys.put


def test_the_journeys_are_seen(journeys: trace.Journeys) -> None:
    """The counts above would be small if nothing was traced."""
    assert "beat/replicated/engine.py" in journeys.message
    assert "beat/tenure.py" in journeys.may_send
    assert "periodic/editor.py" in journeys.put
