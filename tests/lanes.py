"""Three lanes for `make test` on two cores: two run processes against the clock, one fills the time that they wait.

Tests of beats, workers and brokers wait for more than half of their time, and are judged by what happens when. At most
two of them run at once, each in a lane with brokers of its own. The third lane is nice to them: it runs what needs the
processor alone (`tests/unit`, the simulation), and then tests with services that no clock judges. What it has not begun
when the first two are done, they take over. Longer tests come first, so that the lanes end together.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import pytest
from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from xdist.workermanage import WorkerController

LANES: Final = 3
FILLER: Final = "gw2"
NICENESS: Final = 10
#: Directories and files whose tests no clock judges: of a directory of services, those that ask and answer.
PROCESSOR: Final = ("tests/unit/", "tests/simulation/", "tests/soak/", "tests/conformance/")
CALM: Final = (
    "tests/integration/",
    "tests/brokers/",
    "tests/ui/",
    *(
        f"tests/smoke/test_{name}.py"
        for name in (
            "beat_options",
            "cli",
            "explain",
            "isolated",
            "judge",
            "quick_start",
            "readme",
            "rights",
            "secured",
        )
    ),
    "tests/failover/test_judge.py",
    "tests/fleet/test_judge.py",
)
#: Seconds, as measured, of tests and of files that stay together; of others it is `FEW`.
SECONDS: Final = {
    "tests/failover/": 36,
    "tests/fleet/": 30,
    "tests/smoke/test_alarms.py": 35,
    "tests/smoke/test_brokers.py": 40,
    "tests/smoke/test_churn.py": 61,
    "tests/smoke/test_demo.py": 30,
    "tests/smoke/test_health.py": 40,
    "tests/smoke/test_history.py": 47,
    "tests/smoke/test_outages.py": 35,
    "tests/smoke/test_seeing_costs_nothing.py": 42,
    "tests/smoke/test_watch.py": 37,
}
FEW: Final = 10
#: Their files stay together: there are thousands of short tests, or they share what one of them made.
TOGETHER: Final = ("tests/unit/", "tests/conformance/", "tests/ui/", "tests/smoke/test_quick_start.py")


def scope_of(nodeid: str) -> str:
    """Return what a test is assigned with: its file, or itself alone."""
    return nodeid.partition("::")[0] if nodeid.startswith(TOGETHER) else nodeid


def seconds_of(scope: str) -> int:
    """Return how long it takes, roughly."""
    return next((seconds for start, seconds in SECONDS.items() if scope.startswith(start)), FEW)


def choice(lane: str, scopes: Iterable[str]) -> str | None:
    """Return what a lane is to run next; None if there is nothing for it."""
    waiting = list(scopes)
    processor = [each for each in waiting if each.startswith(PROCESSOR)]
    calm = [each for each in waiting if each.startswith(CALM)]
    judged = [each for each in waiting if not each.startswith((*PROCESSOR, *CALM))]
    if lane == FILLER:
        return next(iter((*processor, *calm)), None)
    if judged:
        return max(judged, key=seconds_of)
    return next(iter((*reversed(calm), *reversed(processor))), None)


class LaneScheduling(LoadScopeScheduling):
    """Gives each worker of xdist what its lane runs."""

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)

    def _assign_work_unit(self, node: WorkerController) -> None:
        found = choice(node.gateway.id, self.workqueue)
        if found is None:
            node.shutdown()
            return
        self.workqueue.move_to_end(found, last=False)
        super()._assign_work_unit(node)

    def _reschedule(self, node: WorkerController) -> None:
        # A worker begins a test when it knows the next one, or that there is none: it needs one that waits.
        if not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
            self._assign_work_unit(node)


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LaneScheduling | None:
    """Take the lanes for the whole suite; any other number of workers is spread as xdist does it."""
    return LaneScheduling(config, log) if len(config.getoption("tx")) == LANES else None


def pytest_configure(config: pytest.Config) -> None:
    """Let the lane that fills be nice to the others, as are the brokers that it starts."""
    if os.environ.get("PYTEST_XDIST_WORKER") == FILLER and os.environ.get("PYTEST_XDIST_WORKER_COUNT") == str(LANES):
        os.nice(NICENESS)
