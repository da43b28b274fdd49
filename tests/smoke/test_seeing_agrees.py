"""What shows a fleet agrees with itself: the watch, the page, the metrics, the history, and the tasks' own records.

Three beats, two workers, and a SIGKILL of the leader while the standbys stand still for some seconds. Then all entries
are paused, so that the picture stands still, and each view is asked once. The tasks' own records in Redis, and what
each beat wrote down of its lease, are the truth that the others are measured by.
"""

from __future__ import annotations

import json
import re
import signal
import time
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timezone
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

from tests.processes import free_ports, wait_until

if TYPE_CHECKING:
    from tests.smoke.members import Members, Process

pytestmark = [pytest.mark.smoke, pytest.mark.slow]

LEASE = 4.0
FROZEN = 3.0  # seconds that nobody can lead after the lease of the dead leader
#: `once` runs once for all slots that it missed, `all` for each of them, and `bad` fails.
SCHEDULE = {
    "once": {"task": "seeing.good", "schedule": 1.0},
    "all": {"task": "seeing.good", "schedule": 1.0, "options": {"neli_misfire": "fire_all"}},
    "bad": {"task": "seeing.bad", "schedule": 2.0},
}
READ = 1.0  # seconds within which the standbys have read all; the lease is still good then
#: Seconds by which two measures of one gap may differ. The log's (watch, page) is between the times of two records; the
#: new leader's own (metrics) is between what its clock showed when it read them, on a machine that is busy.
APART = 0.5
#: Milliseconds before its death within which what a beat sent may be missing in what it recorded: it looks at its queue
#: each half second, and then Kafka takes its time. Of these slots, the worker alone tells.
UNTOLD = 1500

Slot = tuple[str, int]  # an entry, and Unix milliseconds, rounded down as texts are


@dataclass(eq=False)
class Seen:
    """A member, and the port on which it answers."""

    process: Process
    port: int

    def samples(self) -> list[Any]:
        with urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def total(samples: list[Any], name: str, **labels: str) -> float:
    """The sum of what has these labels."""
    return sum(
        each.value for each in samples if each.name == f"celery_neli_{name}" and labels.items() <= each.labels.items()
    )


class Tables(HTMLParser):
    """The rows of the tables of a page: the text and the times of each cell."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.times: list[list[str]] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
            self.times.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._inside = True
        elif tag == "time" and self._inside:
            self.times[-1].append(dict(attributes)["datetime"] or "")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.rows[-1][-1] += data


def seconds(text: str) -> float:
    """The number of seconds that a view shows: 4.3 s, or 430 ms."""
    number, unit = text.split()
    return float(number) * {"s": 1.0, "ms": 0.001}[unit]


def milliseconds(at: float | str) -> int:
    """A moment in Unix seconds, or as a view or a header shows it, in whole milliseconds."""
    if isinstance(at, str):
        found = datetime.fromisoformat(at)
        at = (found if found.tzinfo else found.replace(tzinfo=timezone.utc)).timestamp()
    return int(at * 1000 + 0.0005)  # a float holds these to 0.0003


def fate_of_run(run: dict[str, Any]) -> str:
    """What `schedule runs` says, in the page's words: what the worker told counts first."""
    return str(run["state"] or {"skipped": "left out"}.get(run["outcome"], run["outcome"]))


def page_of(port: int, path: str = "/", **query: str) -> Tables:
    with urlopen(f"http://127.0.0.1:{port}{path}?{urlencode(query)}", timeout=10) as answer:
        return Tables(answer.read().decode())


def terms_of(port: int) -> list[list[str]]:
    """The rows of the page's table of terms, the newest first; none while it does not answer."""
    try:
        return [row for row in page_of(port, window="15m").rows if row[0] == "beat leader" and len(row) == 7]
    except OSError:
        return []


def holding(beats: list[Seen]) -> list[Process]:
    return [each.process for each in beats if each.process.holds()]


def started_tasks(members: Members, key: str) -> list[dict[str, Any]]:
    with redis.Redis.from_url(members.settings["broker_url"]) as client:
        return [json.loads(each) for each in client.lrange(key, 0, -1)]


def test_all_views_agree_when_the_leader_is_killed(on_node: Members) -> None:
    on_node.project = "tests.smoke.seeing_project"
    on_node.settings.update(beat_schedule=SCHEDULE, beat_max_loop_interval=1)
    key = f"seen-{on_node.group}"
    ports = iter(free_ports(6))

    def start(command: str, *arguments: str, name: str) -> Seen:
        port = next(ports)
        process = on_node.celery(
            command, "-l", "INFO", *arguments, name=name, election=command, neli_http=f"127.0.0.1:{port}",
            environment={"SMOKE_INSTALL": "1", "SEEING_LIST": key},
        )  # fmt: skip
        return Seen(process, port)

    def seen_slots() -> list[dict[str, Any]]:
        return started_tasks(on_node, key)

    workers = [start("worker", "-c", "1", "-n", f"{name}@%h", name=name) for name in ("w1", "w2")]
    beats = [start("beat", "-S", "celery_neli.Scheduler", name=name) for name in ("b1", "b2", "b3")]
    watch = on_node.celery("neli", "watch", name="eyes", election="beat")
    page = next(ports)
    on_node.celery("neli", "ui", "--port", str(page), name="page", election="beat")
    (leader,) = wait_until(lambda: holding(beats), timeout=60, what="a leader")
    wait_until(lambda: len(seen_slots()) > 8, timeout=60, what="tasks")
    wait_until(lambda: " slot " in watch.log, timeout=60, what="slots in the watch")
    wait_until(lambda: terms_of(page), timeout=60, what="a term on the page")

    killed, killed_at = leader.signal(signal.SIGKILL), milliseconds(time.time())
    # The standbys read its last records, and then stand still until its lease is over, so that there is a gap worth the
    # name. One that had not read its last heartbeat would count from when it did, and think that the gap is shorter.
    followers = [each.process for each in beats if each.process is not leader]
    time.sleep(READ)
    for each in followers:
        each.signal(signal.SIGSTOP)
    time.sleep(LEASE - READ + FROZEN)
    for each in followers:
        each.signal(signal.SIGCONT)
    follower = wait_until(
        lambda: [each for each in followers if each.transitions()], timeout=60, what="a new leader", interval=0.02
    )[0]
    acquired = follower.transitions()[0]
    took = acquired.at - killed
    before, after = leader.terms("acquired")[-1], acquired.term
    first_of_new = wait_until(
        lambda: [each for each in seen_slots() if each["term"] == after], timeout=30, what="tasks of the new term"
    )[0]
    wait_until(lambda: len(seen_slots()) > 40, timeout=30, what="more tasks")
    for name in SCHEDULE:
        done = on_node.run("neli", "schedule", "pause", name)
        assert done.returncode == 0, done.stderr
    survivors = [each for each in beats if each.process is not leader]
    new = next(each for each in survivors if each.process is follower)

    # The truth: what the tasks wrote. A slot in doubt may have run twice, with one id.
    def still() -> list[dict[str, Any]] | None:
        found = seen_slots()
        time.sleep(2.5)  # longer than the shortest interval, and than history, watch and page take
        return found if len(found) == len(seen_slots()) else None

    records = wait_until(still, timeout=60, what="an end of the tasks")
    truth: dict[Slot, dict[str, Any]] = {(each["entry"], milliseconds(each["slot"])): each for each in records}
    assert {each["term"] for each in records} == {before, after}
    assert {each["worker"].partition("@")[0] for each in records} == {"w1", "w2"}
    print(f"\nfailover {took:.2f} s; {len(truth)} slots ran, {len(records) - len(truth)} of them twice")

    # The history: each slot that ran, by its id, term and worker; what else it tells was left out.
    asked = on_node.run("neli", "schedule", "runs", "--json", "--limit", "1000")
    assert asked.returncode == 0, asked.stderr
    told = json.loads(asked.stdout)
    runs: dict[Slot, dict[str, Any]] = {(each["entry"], milliseconds(each["slot"])): each for each in told}
    assert len(runs) == len(told)
    ran = {slot: run for slot, run in runs.items() if run["state"]}
    left_out = {slot: run for slot, run in runs.items() if run["outcome"] == "skipped"}
    assert ran.keys() == truth.keys()
    assert runs.keys() == ran.keys() | left_out.keys()
    # The leader sent the last slots before its death, and nobody knows: `fire_once` may leave such a slot out.
    unsure = {slot for slot, run in runs.items() if run["in_doubt"]}
    assert all(slot in unsure for slot in ran.keys() & left_out.keys())
    for slot, run in ran.items():
        own = [each for each in records if each["id"] == run["id"]]
        assert len(own) == 1 or (own and slot in unsure), run
        assert run["state"] == ("failed" if slot[0] == "bad" else "succeeded"), run
        assert run["worker"] in {each["worker"] for each in own}, run
        if run["outcome"] is None:
            assert killed_at - UNTOLD <= slot[1] <= killed_at, run
            continue
        assert slot in left_out or (run["outcome"], run["term"]) in {("sent", each["term"]) for each in own}, run
    assert {(run["policy"], run["term"]) for run in left_out.values()} == {("misfire", after)}
    # No slot is without a fate: from the first one on, each is told of, alone or with those before it.
    for name, entry in SCHEDULE.items():
        every: float = entry["schedule"]  # type: ignore[assignment]
        slots = sorted(slot for each, slot in runs if each == name)
        count = sum(runs[name, slot]["count"] for slot in slots)
        assert count == round((slots[-1] - slots[0]) / (1000 * every)) + 1, (name, slots)
    fates = {slot: fate_of_run(run) for slot, run in runs.items()}

    # The terms and the gap, from the leader topic, as the watch tells them and as the page shows them.
    ended = re.search(rf"beat role leader: term {before} of {leader.name} ended: (.*)", watch.log)
    assert ended, watch.log[-3000:]
    assert ended[1].startswith(f"its lease of {LEASE:.1f} s ran out"), ended[1]
    began = re.search(rf"term {after} of {follower.name} began, after ([0-9.]+ s) without a leader", watch.log)
    assert began, watch.log[-3000:]
    gap = seconds(began[1])
    assert set(map(int, re.findall(r"beat role leader: .*?term (\d+)", watch.log))) == {before, after}
    rows = terms_of(page)
    assert [(int(row[1]), row[2], row[5]) for row in rows] == [
        (after, follower.name, "lives"), (before, leader.name, "expired"),
    ]  # fmt: skip
    gap_of_page = seconds(rows[0][6])
    # A lease that is not renewed runs out LEASE after its last heartbeat, sent up to a second before the kill.
    assert took - LEASE - APART <= gap <= took - LEASE + 1.0 + APART, (gap, took)
    assert gap >= FROZEN - APART
    assert abs(gap - gap_of_page) <= 0.06, "both round what the same two records say"

    # The metrics of those that live.
    samples = {each.process.name: each.samples() for each in (*survivors, *workers)}
    for each in survivors:
        found = samples[each.process.name]
        assert total(found, "term", election="beat") == after
        assert total(found, "leader", election="beat") == (each is new)
        assert total(found, "without_leader_seconds", election="beat") == 0
        assert total(found, "terms_begun_total", election="beat") == (each is new)
        assert (total(found, "slots_total") > 0) == (each is new)
    led = samples[follower.name]
    assert total(led, "terms_begun_total", election="beat", after="expired") == 1
    gap_of_metrics = total(led, "leaderless_seconds_total", election="beat")
    assert abs(gap - gap_of_metrics) <= APART, (gap, gap_of_metrics)
    sent = Counter(run["term"] for run in runs.values() if run["outcome"] == "sent")
    assert total(led, "slots_total", outcome="sent") == sent[after]
    assert total(led, "slots_total", outcome="skipped") == sum(run["count"] for run in left_out.values())
    states = Counter(run["state"] for run in ran.values())
    twice = len(records) - len(truth)
    for state, count in states.items():
        counted = sum(total(samples[each.process.name], "runs_total", state=state) for each in workers)
        assert count <= counted <= count + twice, (state, counted)
    print(f"without a leader: watch {gap} s, page {gap_of_page} s, metrics {gap_of_metrics:.3f} s")

    # Each slot's fate: in the watch since it began, and on the page of its entry.
    watched = {
        (name, milliseconds(at)): what for at, name, what in re.findall(r"slot (.+?) of (\S+): ([a-z]+)", watch.log)
    }
    began_at = min(slot for _, slot in watched)
    for (name, slot), fate in fates.items():
        if slot >= began_at:
            assert watched.get((name, slot)) == {"left out": "skipped"}.get(fate, fate), (name, slot)
    shown: dict[Slot, str] = {}
    for name in SCHEDULE:
        tables = page_of(page, "/entry", name=name)
        for row, times in zip(tables.rows, tables.times, strict=True):
            if len(row) == 7 and times:
                slot = milliseconds(times[0])
                shown[name, slot] = row[1].strip()
                if (name, slot) in ran:
                    run = ran[name, slot]
                    by = "–" if run["term"] is None else f"{run['member']} term {run['term']}"
                    assert " ".join(row[4].split()) == by
                    assert row[5] == run["worker"]
                    assert run["id"] in row[6]
    assert shown == fates

    # The story of one slot of each kind.
    late = max(((name, slot) for name, slot in ran if name == "all"), key=lambda each: ran[each]["late"] or 0.0)
    last_of_old = max((slot for slot, each in truth.items() if each["term"] == before), key=lambda each: each[1])
    of_new = (first_of_new["entry"], milliseconds(first_of_new["slot"]))
    examples = {
        min(truth),
        last_of_old,
        max(truth),
        late,
        of_new,
        *list(left_out)[:1],
        max(s for s in truth if s[0] == "bad"),
    }
    for name, slot in examples:
        at = datetime.fromtimestamp(runs[name, slot]["slot"], timezone.utc).isoformat()
        asked = on_node.run("neli", "explain", name, at, "--json")
        story = json.loads(asked.stdout)
        events = "\n".join(each["what"] for each in story["events"])
        assert story["verdict"] == {"left out": "misfire"}.get(fates[name, slot], fates[name, slot]), story
        assert milliseconds(story["slot"]) == slot
        assert story["ran"] == ((name, slot) in truth) or (name, slot) in unsure, story
        if (name, slot) in truth:
            assert f"term {truth[name, slot]['term']} claimed the slot" in events, story
            assert story["run"]["id"] == truth[name, slot]["id"], story
    for each in survivors:
        assert "Traceback" not in each.process.log
