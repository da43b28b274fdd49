"""`make demo`: a Kafka, a worker and three beats. Their leader is stopped in every way, and a periodic task is added
while they run; the receipts tell who led when, and what became of each slot.

Environment: SECONDS, about how long it takes (default 60, at least 25); JSON=1, the summary as one JSON line at the
end; KEEP=1, keep the logs. Exit status: 0, one led at all times; 1, two led at once; 2, the demo could not run.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from example_project.display import Screen, report
from example_project.processes import Fleet, Process, ProcessDied
from example_project.receipts import Ledger, Receipt
from example_project.summary import KINDS, Stop, Summary, judge

if TYPE_CHECKING:
    from collections.abc import Callable

LEAST = 25.0
BEATS = 3
START = 30.0  # seconds to wait for the first task
HAND_OVER = 25.0  # seconds to wait for the next leader's
ROUND = 14.0  # seconds that three handovers take: at once, and twice until the lease runs out
REST = 1.5  # seconds at least between them
FROZEN = 1.5  # seconds that a frozen leader stays frozen after its successor's first task
SETTLE = 2.0  # seconds for the last messages to arrive
ADDED = "added-at-runtime"
#: What any user could type: an entry for every full second, of which each slot runs.
ADD = ["neli", "schedule", "add", ADDED, "example.tick", "relative:PT1S", "--misfire", "fire_all"]


class Failed(Exception):
    """The demo could not run."""


class Demo:
    """The play. Every method may take seconds; all raise `Failed` or `ProcessDied`."""

    def __init__(self, *, fleet: Fleet, screen: Screen, seconds: float) -> None:
        self._fleet = fleet
        self._screen = screen
        self._seconds = seconds
        self._ledger = Ledger(fleet.directory / "receipts.jsonl")
        self._beats: list[Process] = []
        self._names: dict[int, str] = {}  # of pids, also of those that are gone
        self._stops: list[Stop] = []
        self._latest: Receipt | None = None  # of the highest term
        self._adding: Process | None = None
        self._added = False

    def run(self) -> Summary:
        self._start()
        left = self._seconds - self._screen.seconds - REST - SETTLE
        rounds = max(1, int(left // (ROUND + len(KINDS) * REST)))
        rest = max(REST, (left - rounds * ROUND) / (rounds * len(KINDS)))
        for kind in KINDS * rounds:
            # At any moment of the second.
            self._watch(rest - 0.5 + random.random())
            self._hand_over(kind)
        self._watch(max(REST, self._seconds - self._screen.seconds - SETTLE))
        until = time.time()
        self._watch(SETTLE)
        if not self._added:
            assert self._adding is not None
            raise Failed(f"the entry {ADDED} never ran; the log of its command ends:\n{self._adding.tail()}")
        return judge(self._ledger.receipts, self._stops, until=until, notices=self._ledger.notices)

    def _start(self) -> None:
        kafka = self._fleet.start("kafka", [sys.executable, "-m", "example_project.kafka"])
        address: list[str] = []

        def listening() -> bool:
            address[:] = [line for line in kafka.log.read_text().splitlines() if line.startswith("127.0.0.1:")]
            return bool(address)

        self._wait(listening, timeout=10, what="the embedded Kafka did not start")
        self._fleet.environment["EXAMPLE_KAFKA"] = address[0]
        self._screen.line(f"embedded Kafka on {address[0]} (pid {kafka.pid})")
        celery = [sys.executable, "-m", "celery", "-A", "example_project.witness"]
        # One task at a time, so that the receipts keep the order of the messages.
        worker = self._fleet.start(
            "worker", [*celery, "worker", "--pool", "solo", "-n", "worker@demo", "-l", "INFO"], expendable=True
        )
        for number in range(1, BEATS + 1):
            self._beats.append(self._fleet.start(f"beat-{number}", [*celery, "beat", "-l", "INFO"]))
        self._names = {each.pid: each.name for each in self._beats}
        started = ", ".join(f"{each.name} (pid {each.pid})" for each in [worker, *self._beats])
        self._screen.line(f"started {started}")
        self._wait(lambda: self._latest, timeout=START, what="no leader")
        self._screen.line(f"{self._leader_and_term()} leads")
        self._adding = self._fleet.start("add", [sys.executable, "-m", "celery", "-A", "example_project.app", *ADD])
        self._fleet.expect_end(self._adding)
        self._screen.line(f"celery {' '.join(ADD)}")

    def _hand_over(self, kind: str) -> None:
        """Stop the leader, see the next one, and bring the old one back."""
        latest = self._latest
        assert latest is not None
        assert latest.term is not None
        leader = next((each for each in self._beats if each.pid == latest.pid), None)
        if leader is None:
            raise Failed(f"the last message came from {latest.sender}, which is none of the running beats")
        if kind != "SIGSTOP":
            self._fleet.expect_end(leader)
        stop = Stop(kind=kind, at=time.time(), term=latest.term)
        leader.signal(signal.Signals[kind])
        self._stops.append(stop)
        self._screen.line(f"{kind} to {leader.name} (pid {leader.pid})")
        self._wait(
            lambda: self._latest is not None and self._latest.term is not None and self._latest.term > stop.term,
            timeout=HAND_OVER,
            what=f"no leader after {kind}",
        )
        self._announce(stop)
        if kind == "SIGSTOP":
            self._watch(FROZEN)
            leader.signal(signal.SIGCONT)
            self._screen.line(f"SIGCONT to {leader.name}: its lease is over, and it must know")
        else:
            try:
                leader.wait(HAND_OVER)
            except subprocess.TimeoutExpired:
                raise Failed(f"{leader.name} did not end after {kind}; its log ends:\n{leader.tail()}") from None
            self._fleet.ended(leader)
            self._fleet.restart(leader)
            self._names[leader.pid] = leader.name
            self._screen.line(f"{leader.name} is started again (pid {leader.pid})")

    def _announce(self, stop: Stop) -> None:
        how = "since before the signal"
        for done in judge(self._ledger.receipts, [stop], until=stop.at, notices=self._ledger.notices).handovers:
            led = "" if done.told is None else f"{done.told:.2f} s after the signal, "
            how = f"{led}first task {done.first_task:.2f} s after it"
        self._screen.line(f"{self._leader_and_term()} leads: {how}")

    def _leader_and_term(self) -> str:
        assert self._latest is not None
        return f"{self._names.get(self._latest.pid or 0, self._latest.sender)} (term {self._latest.term})"

    def _watch(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._look()

    def _wait(self, condition: Callable[[], object], *, timeout: float, what: str) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() >= deadline:
                tails = "".join(f"\n--- {each.name}, its log ends:\n{each.tail(8)}" for each in self._beats)
                raise Failed(f"{what} within {timeout:g} s{tails}")
            self._look()

    def _look(self) -> None:
        time.sleep(0.05)
        self._fleet.check()
        for receipt in self._ledger.read():
            if receipt.term is None:
                raise Failed(f"{receipt.sender} sent a message that names no term: it did not ask who leads")
            if receipt.entry == ADDED and not self._added:
                self._added = True
                self._screen.line(f"{ADDED} runs")
            if self._latest is None or receipt.term >= (self._latest.term or 0):
                self._latest = receipt
        if self._latest is not None:
            first = [each.slot for each in self._ledger.receipts[-10:] if each.entry != ADDED]
            slots = [time.strftime("%H:%M:%S", time.localtime(slot)) for slot in first[-5:]]
            self._screen.status(f"{self._leader_and_term()} leads; last tasks {' '.join(slots)}")


def play(*, seconds: float, keep: bool, screen: Screen) -> Summary:
    """The demo in a directory of its own, of which nothing is left unless it is to be kept."""
    directory = Path(tempfile.mkdtemp(prefix="celery-neli-demo-"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CELERY_", "EXAMPLE_"))}
    environment |= {"EXAMPLE_RECEIPTS": str(directory / "receipts.jsonl"), "PYTHONUNBUFFERED": "1"}
    environment["TMPDIR"] = str(directory)  # processes note there that they are well
    with Fleet(directory=directory, keep=keep, environment=environment, cwd=Path(__file__).parents[1]) as fleet:
        try:
            return Demo(fleet=fleet, screen=screen, seconds=seconds).run()
        finally:
            screen.line("stopping all processes" + (f"; their logs stay in {directory}" if keep else ""))


def main() -> int:
    # Whoever ends the demo ends it in order; also in the background of a shell, which ignores Ctrl-C there.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    as_json = os.environ.get("JSON", "") not in ("", "0")
    screen = Screen(sys.stdout)
    try:
        seconds = _seconds(os.environ.get("SECONDS") or "60")
        screen.plain(
            f"A worker, {BEATS} beats, a task a second; the leader is stopped, again and again, for {seconds:.0f} s."
        )
        summary = play(seconds=seconds, keep=os.environ.get("KEEP", "") not in ("", "0"), screen=screen)
    except (Failed, ProcessDied) as error:
        screen.plain(f"The demo failed: {error}")
        if as_json:
            screen.plain(json.dumps({"ok": False, "error": str(error)}))
        return 2
    except KeyboardInterrupt:
        screen.plain("Interrupted.")
        return 130
    except BrokenPipeError:  # whoever read this has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    screen.plain(report(summary))
    if as_json:
        screen.plain(json.dumps(summary.as_dict()))
    return summary.exit_status


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = float("nan")
    if not LEAST <= seconds < 1e6:
        raise Failed(
            f"SECONDS={text} must be a number, at least {LEAST:.0f}: to stop a leader in three ways takes so long"
        )
    return seconds


if __name__ == "__main__":
    sys.exit(main())
