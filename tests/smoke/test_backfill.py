"""Backfills with a real beat, a real worker, Kafka and Redis; and killed in the middle, at random moments."""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
import redis

from tests.processes import start_process, wait_until

if TYPE_CHECKING:
    from tests.smoke.members import Members

pytestmark = [pytest.mark.smoke, pytest.mark.slow]

OPTIONS = {"neli_misfire": "skip", "neli_misfire_grace": 1, "queue": "back"}
SCHEDULE = {
    "tick": {"task": "smoke.tick", "schedule": "* * * * * *", "options": OPTIONS},
    "daily": {"task": "smoke.tick", "schedule": "0 7 * * *"},
}


def backfill(members: Members, name: str, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    """The exit status, and the slots."""
    done = members.run("neli", "schedule", "backfill", name, *arguments, "--yes", "--json")
    assert done.stdout.startswith("{"), done.stdout + done.stderr
    return done.returncode, json.loads(done.stdout)["slots"]


def at(seconds: float) -> str:
    return datetime.fromtimestamp(int(seconds), timezone.utc).isoformat()


def runs(members: Members, name: str) -> list[dict[str, Any]]:
    """What the history has, of each slot."""
    done = members.run("neli", "schedule", "runs", name, "--limit", "1000", "--json")
    if not done.stdout.startswith("["):
        return []  # there is no history yet
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return [each for each in found if each["slot"] is not None]


def test_slots_of_a_time_without_a_beat_run_once_each(on_node: Members) -> None:
    """Twenty slots and more are left out by their policy. Those, and no others, are sent, and run once each."""
    on_node.settings["beat_schedule"] = SCHEDULE
    worker = on_node.worker("-P", "solo", "-Q", "back", name="w1")
    first = on_node.beat()
    wait_until(lambda: len(runs(on_node, "tick")) > 3, timeout=60, interval=0.5, what="runs")
    first.signal(signal.SIGTERM)
    first.wait_end()
    stopped = time.time()
    refused = on_node.run("neli", "schedule", "backfill", "tick", "--from", at(stopped - 3), "--to", "0s", "--yes")
    assert refused.returncode == 1
    assert "no beat leads, and the next one decides" in refused.stderr
    time.sleep(max(0.0, stopped + 23 - time.time()))
    again = time.time()
    second = on_node.beat()
    wait_until(second.holds, timeout=60, what="another leader")
    begun = time.time()
    time.sleep(4)
    span = ("--from", at(stopped - 2), "--to", at(begun + 1), "--rate", "200")
    status, found = backfill(on_node, "tick", *span)
    counts = Counter(each["action"] for each in found)
    print(f"\nstopped for {again - stopped:.0f} s: {dict(counts)}")
    assert (status, counts["sent"] >= 20, set(counts)) == (0, True, {"sent", "skipped"}), found
    status, twice = backfill(on_node, "tick", *span)
    assert (status, {each["action"] for each in twice}) == (0, {"skipped"})
    wanted = {each["id"] for each in found}

    def all_ran() -> bool:
        return wanted <= {each["id"] for each in runs(on_node, "tick") if each["state"] == "succeeded"}

    wait_until(all_ran, timeout=30, interval=0.5, what="runs of all slots")
    received = Counter(
        word for line in worker.log.splitlines() if "received" in line for word in wanted if word in line
    )
    assert received == dict.fromkeys(wanted, 1)
    story = on_node.run("neli", "explain", "tick", next(each["slot"] for each in found if each["action"] == "sent"))
    assert "A backfill by" in story.stdout
    print(on_node.run("neli", "schedule", "runs", "tick", "--limit", "12").stdout)
    for each in (worker, second):
        each.signal(signal.SIGTERM)
        each.wait_end()


def test_a_backfill_that_is_killed_sends_no_slot_twice(on_node: Members, redis_url: str) -> None:
    """Killed at random moments until all is done, with a rival at times: what the task broker got counts."""
    on_node.settings["beat_schedule"] = SCHEDULE
    beat = on_node.beat()
    wait_until(beat.holds, timeout=60, what="a leader")
    now = datetime.now(timezone.utc)
    minute = (now.minute + 30) % 60  # none is due while this runs
    put = on_node.run("neli", "schedule", "add", "hourly", "smoke.tick", f"{minute} * * * *", "--queue", "killed")
    assert put.returncode == 0, put.stderr
    end = now.replace(minute=minute, second=0, microsecond=0) - timedelta(hours=2)
    start = end - timedelta(hours=239)
    span = ("--from", start.isoformat(), "--to", end.isoformat(), "--rate", "40")
    command = on_node.command("neli", "schedule", "backfill", "hourly", *span, "--yes")
    seed = random.randrange(1 << 32)
    chance, kills = random.Random(seed), 0

    def ids() -> list[str]:
        with redis.Redis.from_url(redis_url) as client:
            return [json.loads(each)["headers"]["id"] for each in client.lrange("killed", 0, -1)]

    with (on_node.directory / "backfill.log").open("ab") as log:
        environment = on_node.environment(SMOKE_NAME="backfill")
        for _ in range(20):
            before = len(ids())
            started = [
                start_process(command, env=environment, stdout=log, stderr=log, cwd=on_node.directory)
                for _ in range(1 + (chance.random() < 0.3))
            ]
            deadline = time.monotonic() + 30
            while len(ids()) == before and time.monotonic() < deadline and started[0].poll() is None:
                time.sleep(0.01)
            time.sleep(chance.uniform(0.0, 0.4))
            for each in started:
                kills += each.poll() is None
                each.kill()
                each.wait()
            if len(ids()) >= 235:
                break
    status, found = backfill(on_node, "hourly", *span)
    sent = Counter(ids())
    assert set(sent.values()) == {1}, f"seed {seed}"
    doubtful = [each for each in found if each["note"].startswith("in doubt")]
    missing = {each["id"] for each in found} - set(sent)
    print(f"\n{kills} kills: {len(sent)} of 240 sent, {len(doubtful)} in doubt, {len(missing)} of them not sent")
    assert kills >= 5
    assert len(found) == 240
    assert missing <= {each["id"] for each in doubtful}, f"seed {seed}"
    assert len(doubtful) <= 2 * kills
    assert status == (1 if doubtful else 0)
    status, _ = backfill(on_node, "hourly", *span, "--in-doubt", "send")
    assert status == 0
    assert set(ids()) == {each["id"] for each in found}
    beat.signal(signal.SIGTERM)
    beat.wait_end()
