"""Celery's own options of `celery beat` do with celery-neli's scheduler what they always did."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import celery
import pytest

from tests.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.smoke.members import Members

pytestmark = [pytest.mark.smoke, pytest.mark.slow]


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        (["-S", "neli"], {}),
        (["-S", "celery_neli.Scheduler", "--max-interval", "1"], {}),
        ([], {"beat_scheduler": "celery_neli.Scheduler"}),
        (["-s", "state", "-S", "neli"], {"neli_scheduler": "celery.beat.PersistentScheduler"}),
    ],
    ids=["alias", "path-and-max-interval", "setting", "persistent-and-file"],
)
def test_each_way_of_naming_the_scheduler(
    arguments: list[str], settings: dict[str, str], on_node: Members, terms: Callable[[], list[int]], tmp_path: Path
) -> None:
    """It leads and sends; `-s` is the wrapped scheduler's file."""
    beat = on_node.beat(*arguments, **settings)
    wait_until(terms, timeout=40, what="a task")
    beat.signal(signal.SIGTERM)
    assert beat.wait_end() == 0
    assert "Traceback" not in beat.log
    assert bool(list(tmp_path.glob("state*"))) == ("-s" in arguments)


def test_detached(on_node: Members, terms: Callable[[], list[int]], tmp_path: Path) -> None:
    """The daemon, forked after the app was imported, joins the election; its pidfile goes when it does."""
    pidfile, logfile = tmp_path / "beat.pid", tmp_path / "detached.log"
    starter = on_node.beat("--detach", "--pidfile", str(pidfile), "--logfile", str(logfile))
    assert starter.wait_end() == 0
    pid = wait_until(lambda: int((pidfile.exists() and pidfile.read_text().strip()) or 0), timeout=30, what="its pid")
    try:
        wait_until(terms, timeout=40, what="a task")
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not pidfile.exists(), timeout=20, what="the pidfile's end")
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), timeout=20, what="the daemon's end")
    finally:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGKILL)
    assert "leadership acquired" in logfile.read_text()
    assert "Traceback" not in logfile.read_text()


@pytest.mark.skipif(celery.VERSION < (5, 7), reason="beat answers inspect from Celery 5.7 on")
def test_ping_reaches_leader_and_standby(on_node: Members) -> None:
    """Celery 5.7's remote control of beat; it answers only while ticks are recent, so standbys must tick, too."""
    switch: dict[str, bool] = {"beat_enable_remote_control": True}
    for name in ("one", "two"):
        on_node.beat("-n", f"{name}@%h", name=name, **switch)
    on_node.wait_leader()

    def answers() -> bool:
        told = on_node.run("inspect", "ping", "--timeout", "2").stdout
        return "one@" in told and "two@" in told

    wait_until(answers, timeout=40, what="two pongs")
