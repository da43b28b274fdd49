"""The package costs little where it is only installed: every `celery` command imports its plug-in."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata

import pytest

LOOK = """
import json, socket, sys, threading

made = []
real = socket.socket.__init__
def watched(self, *args, **kwargs):
    made.append("socket")
    real(self, *args, **kwargs)
socket.socket.__init__ = watched
start = threading.Thread.start
def watched_start(self):
    made.append("thread")
    start(self)
threading.Thread.start = watched_start
__import__(sys.argv[1])
print(json.dumps({
    "made": made,
    "threads": threading.active_count(),
    "modules": sorted(sys.modules),
    "root_handlers": len(__import__("logging").root.handlers),
}))
"""


@pytest.mark.parametrize("module", ["celery_neli", "celery_neli.cli"])
def test_import_does_nothing(module: str) -> None:
    """Importing the package, or its plug-in for the celery command, does nothing and loads little.

    No thread, no socket, no logging, neither confluent_kafka nor celery.beat.
    """
    done = subprocess.run([sys.executable, "-c", LOOK, module], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["made"] == []
    assert seen["threads"] == 1
    assert seen["root_handlers"] == 0
    assert not {"confluent_kafka", "celery.beat", "celery_neli.beat.scheduler"} & set(seen["modules"])


TIME = """
import sys, time
import celery.bin.celery
start = time.perf_counter()
__import__(sys.argv[1])
print(time.perf_counter() - start)
"""


@pytest.mark.parametrize("module", ["celery_neli", "celery_neli.cli"])
def test_import_is_cheap(module: str) -> None:
    """Importing the package or its plug-in adds at most 20 ms to any `celery` command (the best of five, for noise)."""
    command = [sys.executable, "-c", TIME, module]
    best = min(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(5))
    print(f"{module}: {best * 1000:.1f} ms")
    assert best <= 0.020


PUBLIC = [
    "ClosedError",
    "Config",
    "ConfigurationError",
    "Conflict",
    "LeaderAcquired",
    "LeaderFenced",
    "LeaderRevoked",
    "LeadershipLost",
    "Neli",
    "NeliError",
    "NotLeader",
    "ReplicatedScheduler",
    "Scheduler",
    "State",
    "TopicError",
    "cron",
    "current_term",
    "install",
    "leader_only",
    "roles",
    "singleton",
    "still_leader",
]


def test_public_names() -> None:
    """`__all__` changes only on purpose: users rely on these names, and each of them is there."""
    import celery_neli

    assert celery_neli.__all__ == PUBLIC
    for name in celery_neli.__all__:
        assert getattr(celery_neli, name) is not None


def test_version() -> None:
    """The version that the package tells is the one under which it is installed."""
    import celery_neli

    assert celery_neli.__version__ == metadata.version("celery-neli")


def test_plugins_are_found() -> None:
    """`celery neli` and `celery beat -S neli` are found through the installed package's entry points."""
    points = {(p.group, p.name): p.value for p in metadata.distribution("celery-neli").entry_points}
    assert points == {
        ("celery.commands", "neli"): "celery_neli.cli:neli",
        ("celery.beat_schedulers", "neli"): "celery_neli.beat.scheduler:Scheduler",
    }
    for point in metadata.distribution("celery-neli").entry_points:
        assert point.load() is not None
