"""How many files a reader must know to follow a message, the question whether it may be sent, and `periodic.put`."""

from __future__ import annotations

import pytest

from benchmarks import trace


@pytest.fixture(scope="module")
def journeys() -> trace.Journeys:
    return trace.journeys()


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
