"""Which tests run beside which: never three that the clock judges, and no lane idle while another has work to begin."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lanes import CALM, FILLER, PROCESSOR, SECONDS, choice, scope_of

UNIT, SIMULATION = "tests/unit/test_heap.py", "tests/simulation/test_simulation.py::test_x[1]"
CALM_ONE, CALM_TWO = "tests/integration/test_group.py::test_a", "tests/smoke/test_rights.py::test_b"
SHORT, LONG = "tests/smoke/test_workers.py::test_c", "tests/smoke/test_churn.py::test_d"
ALL = [CALM_ONE, SHORT, LONG, CALM_TWO, SIMULATION, UNIT]


def taken(lane: str, scopes: list[str]) -> list[str]:
    """Return what a lane takes, one after another, if it is alone."""
    waiting, found = list(scopes), []
    while (each := choice(lane, waiting)) is not None:
        waiting.remove(each)
        found.append(each)
    return found


def test_the_filling_lane_takes_nothing_that_the_clock_judges() -> None:
    """First what needs the processor alone; when that is done it leaves the rest to the others."""
    assert taken(FILLER, ALL) == [SIMULATION, UNIT, CALM_ONE, CALM_TWO]


@pytest.mark.parametrize("lane", ["gw0", "gw1", "gw3"])
def test_the_other_lanes_take_the_longest_first_and_then_help_from_the_end(lane: str) -> None:
    """What they take over last is what the filling lane would take first."""
    assert taken(lane, ALL) == [LONG, SHORT, CALM_TWO, CALM_ONE, UNIT, SIMULATION]


def test_files_of_short_tests_stay_together() -> None:
    """Tests with services are spread one by one."""
    assert scope_of("tests/unit/test_heap.py::test_x[a::b]") == "tests/unit/test_heap.py"
    assert scope_of(LONG) == LONG


@pytest.mark.parametrize("name", [*PROCESSOR, *CALM, *SECONDS])
def test_what_the_lanes_name_exists(name: str) -> None:
    """A file that was renamed would change its lane in silence."""
    assert (Path(__file__).parents[2] / name).exists()
