"""The judge of the smoke tests finds what it is there to find."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from celery_neli.election.shared_lease import Standing
from tests.processes import wait_until
from tests.smoke import judge
from tests.smoke.judge import Held
from tests.smoke.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.mark.parametrize(
    ("other", "found"),
    [
        (Held("b", 9, 2.0, 3.0), 0),  # later
        (Held("b", 9, 0.5, 3.0), 1),  # before the first one ended
        (Held("b", 9, 0.2, 0.3), 1),  # within
        (Held("b", 9, -1.0, 5.0), 1),  # around
        (Held("a", 9, 0.5, 3.0), 1),  # one member in two terms
        (Held("a", 1, 0.5, 3.0), 0),  # the same term goes on
    ],
)
def test_overlaps_are_found(other: Held, found: int) -> None:
    """Two members at once, or two terms; in whichever order they are given."""
    one = Held("a", 1, 0.0, 1.0)
    assert len(judge.overlaps([one, other])) == len(judge.overlaps([other, one])) == found


def test_an_overlap_with_a_long_one_is_found_behind_others() -> None:
    """Not only between neighbours."""
    held = [Held("a", 1, 0.0, 9.0), Held("a", 1, 1.0, 2.0), Held("b", 5, 8.0, 10.0)]
    assert judge.overlaps(held) == [(held[0], held[2])]


def test_a_message_of_a_deposed_leader_is_found() -> None:
    """Terms may rise, not fall."""
    assert judge.falls([3, 3, 7, 7, 9]) == []
    assert judge.falls([3, 7, 3, 7]) == [(2, 7, 3)]


def test_what_a_process_wrote_is_read(tmp_path: Path) -> None:
    """Pieces of one term are joined, across a gap not known to be free; a line cut off by a kill is left out."""
    path = tmp_path / "record"
    assert judge.read(path, "a") == ([], [])
    path.write_text("free\nacquired 5 1.0\nheld 5 1.0 1.1 3\nheld 5 8.0 8.1 2\nfree\nheld 9 9.0 9.1 1\nheld 9 9.")
    held, transitions = judge.read(path, "a")
    assert held == [Held("a", 5, 1.0, 8.1, 2.0), Held("a", 9, 9.0, 9.1, 1.0)]
    assert transitions == [judge.Transition("a", "acquired", 5, 1.0)]


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Callable[[str, Standing], Recorder]]:
    """Start recorders of members that stand still."""
    recorders: list[Recorder] = []

    def record(name: str, standing: Standing) -> Recorder:
        recorders.append(Recorder(tmp_path / name, lambda: standing))
        return recorders[-1]

    yield record
    for each in recorders:
        each.stop()


def test_two_who_hold_at_once_are_recorded_and_found(tmp_path: Path, record: Callable[..., Recorder]) -> None:
    """From the sample to the verdict, with leases that fail."""
    for name, term in (("a", 1), ("b", 2)):
        record(name, Standing(term=term, until=float("inf"), leading=True, held=True))

    def found() -> list[tuple[Held, Held]]:
        return judge.overlaps([each for name in "ab" for each in judge.read(tmp_path / name, name)[0]])

    assert wait_until(found, timeout=10, what="the overlap")


def test_who_does_not_hold_is_not_recorded(tmp_path: Path, record: Callable[..., Recorder]) -> None:
    """But its transitions are."""
    record("a", Standing(term=1, until=0.0, leading=False, held=False)).note("fenced", 1)
    held, transitions = judge.read(tmp_path / "a", "a")
    assert not held
    assert [each.kind for each in transitions] == ["fenced"]
