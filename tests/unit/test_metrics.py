"""The metrics of one process: what is counted, how it is named, and that it reaches Prometheus and OpenTelemetry."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import REGISTRY, CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families

from celery_neli import hooks, signals
from celery_neli.config import Config
from celery_neli.election.role_state import Payload
from celery_neli.hooks import RunEvent, SlotEvent
from celery_neli.metrics import catalogue, collect, otel, prometheus
from celery_neli.metrics.collect import OTHERS, Collection
from celery_neli.metrics.numbers import Distribution, LowWater, Numbers
from celery_neli.threads import spawn
from tests.processes import wait_until
from tests.unit.fakes import FakeStanding

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
Values = dict[str, dict[tuple[str, ...], Any]]


@dataclass
class Role:
    """The handle of a role."""

    now: FakeStanding = field(default_factory=lambda: FakeStanding(7, True, True, until=103.5))
    vacant: float | None = 0.0

    def standing(self) -> FakeStanding:
        return self.now

    def vacant_for(self) -> float | None:
        return self.vacant

    @property
    def last_payload(self) -> Payload:
        return Payload(term=self.now.term, known=True)


class Leadership:
    """One election, as far as metrics ask it."""

    def __init__(self, group: str = "shop.beat", name: str = "me", roles: tuple[str, ...] = ("leader",)) -> None:
        self.config, self.roles = Config(group=group, name=name, roles=roles), roles
        self.election, self.app = group.rpartition(".")[2], Celery("metrics", set_as_current=False)
        recorder = SimpleNamespace(pid=os.getpid(), queued=3, lag=1.5, dropped=2)
        self.app.neli_recorders = {self.election: recorder}
        self.handles = {each: Role() for each in roles}

    def role(self, name: str) -> Role:
        return self.handles[name]


def slot(entry: str = "e", outcome: str = hooks.SENT, *, late: float = 0.2, **more: Any) -> SlotEvent:
    at = 1_000_000.0
    return SlotEvent(entry=entry, task="t", slot=at - late, outcome=outcome, role="leader", term=7, at=at, **more)


def run(state: str) -> RunEvent:
    return RunEvent(entry="e", task="t", slot=1.0, id="1", state=state, worker="w")


@pytest.fixture
def leadership() -> Any:
    return Leadership()


@pytest.fixture
def collection(leadership: Any) -> Iterator[Collection]:
    """A collection for one beat, by a clock at 100 s."""
    made = Collection(most_entries=2, clock=lambda: 100.0)
    made.serve(leadership)
    made.begin()
    yield made
    made.end()
    made.disconnect()


@pytest.fixture
def app() -> Celery:
    return Celery("metrics", set_as_current=False)


def values(collection: Collection) -> Values:
    return {each.metric.name: dict(each.values) for each in collection.read()}


def nonzero(counted: dict[tuple[str, ...], Any]) -> dict[tuple[str, ...], Any]:
    return {labels: number for labels, number in counted.items() if number}


def tell_everything() -> None:
    """Have each hook tell something, so that every metric has a value."""
    hooks.slot(slot())
    hooks.turn(0.001)
    hooks.published(0.002)
    hooks.renewed("shop.beat", "leader", 0.01, 3.0)
    hooks.term_begun("shop.beat", "leader", hooks.EXPIRED, 0.5)
    hooks.term_ended("shop.beat", "leader", hooks.CLOSED)
    hooks.kafka_error("_TRANSPORT")
    hooks.leader_task("forwarded", "leader")
    hooks.singleton("m:work", "leader", True)
    hooks.run(run("succeeded"))


# -- counting --


def test_slots_count_by_outcome_and_policy(collection: Collection) -> None:
    """Several slots at once count as so many; only what was sent is late, or an entry's last slot."""
    hooks.slot(slot())
    hooks.slot(slot(late=2.0))
    hooks.slot(slot(outcome=hooks.SKIPPED, policy="misfire", count=5, late=900.0))
    hooks.slot(slot(outcome=hooks.FAILED))
    found = values(collection)
    assert nonzero(found["celery_neli_slots_total"]) == {
        ("shop", "leader", "sent", ""): 2,
        ("shop", "leader", "skipped", "misfire"): 5,
        ("shop", "leader", "failed", ""): 1,
    }
    lateness = found["celery_neli_slot_lateness_seconds"]["shop", "leader"]
    assert (sum(lateness.counts), lateness.sum) == (2, pytest.approx(2.2))
    last = {("shop", "e"): 1_000_000.0 - 0.2}
    assert found["celery_neli_entry_last_slot_timestamp_seconds"] == last
    hooks.slot(slot(late=3_600.0))  # one that was in doubt is sent after newer ones
    assert values(collection)["celery_neli_entry_last_slot_timestamp_seconds"] == last


def test_lateness_counts_from_when_a_slot_was_due(collection: Collection) -> None:
    """Which its entry's jitter makes later than the slot."""
    hooks.slot(slot(late=100.0, due=1_000_000.0 - 0.25))
    found = values(collection)
    assert found["celery_neli_slot_lateness_seconds"]["shop", "leader"].sum == pytest.approx(0.25)
    assert found["celery_neli_entry_last_slot_timestamp_seconds"]["shop", "e"] == 1_000_000.0 - 100


def test_entries_beyond_the_setting_share_one_series(collection: Collection) -> None:
    """The collection of this test has two of their own."""
    for name in ("a", "b", "c", "d", "a"):
        hooks.slot(slot(name))
    found = values(collection)["celery_neli_entry_last_slot_timestamp_seconds"]
    assert set(found) == {("shop", "a"), ("shop", "b"), ("shop", OTHERS)}


def test_names_of_entries_are_safe_to_show(collection: Collection) -> None:
    """A lone surrogate would cost the whole page of metrics, and a long name its readability."""
    hooks.slot(slot("a\ud800\n\x1b[2J"))
    hooks.slot(slot("x" * 1000))
    labels = [entry for _, entry in values(collection)["celery_neli_entry_last_slot_timestamp_seconds"]]
    assert all(each.isprintable() and len(each) <= 210 and each.encode() for each in labels)


def test_the_lease_margin_is_the_least_since_the_last_scrape(collection: Collection, leadership: Any) -> None:
    """By what each heartbeat found, and by what is left at the moment; an hour without a scrape loses no dip."""
    assert values(collection)["celery_neli_lease_margin_seconds"] == {("shop", "beat", "leader"): 3.5}
    hooks.renewed("shop.beat", "leader", 0.01, None)
    hooks.renewed("shop.beat", "leader", 3.0, 0.7)
    hooks.renewed("shop.beat", "leader", 0.01, 3.4)
    assert values(collection)["celery_neli_lease_margin_seconds"] == {("shop", "beat", "leader"): 0.7}
    hooks.term_ended("shop.beat", "leader", hooks.EXPIRED)
    leadership.handles["leader"].now = FakeStanding(7, False, False)
    assert values(collection)["celery_neli_lease_margin_seconds"] == {("shop", "beat", "leader"): 0.0}


def test_several_readers_see_the_same_lowest_value() -> None:
    """A reading takes nothing from another one; after a minute without it, the value goes with the next reading."""
    water = LowWater(60.0)
    assert water.read(0.0) == float("inf")
    water.add(1.0)
    water.add(2.0)
    assert [water.read(1.0), water.read(2.0), water.read(61.0), water.read(62.0)] == [1.0] * 4
    water.add(3.0)
    assert [water.read(122.0), water.read(123.0)] == [1.0, 3.0]
    assert water.read(90_000.0) == 3.0
    assert water.read(90_061.0) == float("inf")


def test_a_standby_shows_that_it_does_not_lead_and_for_how_long_none_does(
    collection: Collection, leadership: Any
) -> None:
    """And no margin: it has no lease."""
    leadership.handles["leader"] = Role(FakeStanding(9, False, False), vacant=12.5)
    found = values(collection)
    labels = ("shop", "beat", "leader")
    assert found["celery_neli_leader"] == {labels: 0.0}
    assert found["celery_neli_term"] == {labels: 9}
    assert found["celery_neli_without_leader_seconds"] == {labels: 12.5}
    assert "celery_neli_lease_margin_seconds" not in found
    leadership.handles["leader"] = Role(FakeStanding(None, False, False), vacant=None)
    assert {"celery_neli_term", "celery_neli_without_leader_seconds"}.isdisjoint(values(collection))


def test_terms_and_gaps_add_up(collection: Collection) -> None:
    """A first term has no gap before it."""
    hooks.term_begun("shop.beat", "leader", hooks.UNKNOWN, None)
    hooks.term_begun("shop.beat", "leader", hooks.EXPIRED, 0.5)
    hooks.term_begun("shop.beat", "leader", hooks.EXPIRED, 0.25)
    hooks.term_ended("shop.beat", "leader", hooks.ASKED)
    found, labels = values(collection), ("shop", "beat", "leader")
    assert nonzero(found["celery_neli_terms_begun_total"]) == {(*labels, "unknown"): 1, (*labels, "expired"): 2}
    assert found["celery_neli_leaderless_seconds_total"] == {labels: 0.75}
    assert nonzero(found["celery_neli_terms_ended_total"]) == {(*labels, "asked"): 1}


def test_counters_begin_at_zero(collection: Collection) -> None:
    """One that begins at 1 seems never to have risen: Prometheus' `increase` needs two values."""
    found, labels = values(collection), ("shop", "beat", "leader")
    for name, number in (("terms_begun_total", 4), ("terms_ended_total", len(hooks.CAUSES)), ("slots_total", 7)):
        assert list(found[f"celery_neli_{name}"].values()) == [0] * number
    assert found["celery_neli_leaderless_seconds_total"] == {labels: 0}


def test_what_the_worker_and_kafka_tell_is_counted(collection: Collection) -> None:
    """By singleton, action and name of the error."""
    collection.serve(*collection.leaderships, Leadership("shop.worker"))  # type: ignore[arg-type]
    hooks.singleton("m:work", "leader", False)
    hooks.singleton("m:work", "leader", True)
    hooks.leader_task("skipped", "leader")
    hooks.kafka_error("_TRANSPORT")
    for state in ("started", "failed", "started", "succeeded"):
        hooks.run(run(state))
    found = values(collection)
    assert nonzero(found["celery_neli_runs_total"]) == {
        ("shop", "started"): 2, ("shop", "failed"): 1, ("shop", "succeeded"): 1,
    }  # fmt: skip
    assert found["celery_neli_history_lag_seconds"] == {("shop", "beat"): 1.5, ("shop", "worker"): 1.5}
    assert found["celery_neli_singleton_turns_total"] == {("shop", "leader", "m:work"): 2}
    assert found["celery_neli_singleton_failures_total"] == {("shop", "leader", "m:work"): 1}
    assert found["celery_neli_leader_tasks_total"] == {("shop", "leader", "skipped"): 1}
    assert found["celery_neli_kafka_errors_total"] == {("shop", "_TRANSPORT"): 1}
    assert len(found["celery_neli_leader"]) == 2


def test_alarms_are_counted_by_reason_until_the_end(collection: Collection) -> None:
    """The process that watches counts them: that of a run that does not finish, too."""
    signals.slot_overdue.send(sender=None, entry="e", reason="not_sent", count=3)
    signals.run_overdue.send(sender=None, entry="e", worker="w")
    expected = {("shop", "not_sent"): 1, ("shop", "not_finished"): 1}
    assert nonzero(values(collection)["celery_neli_overdue_alarms_total"]) == expected
    collection.end()
    signals.run_overdue.send(sender=None, entry="e", worker="w")
    collection.disconnect()
    assert nonzero(values(collection)["celery_neli_overdue_alarms_total"]) == expected


def test_threads_that_count_at_once_lose_nothing() -> None:
    """The threads that publish, tick and renew do."""
    numbers = Numbers()

    def count() -> None:
        for _ in range(5_000):
            numbers.add(catalogue.KAFKA_ERRORS, ("", "x"))
            numbers.observe(catalogue.PUBLISH, ("",), 0.001)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=count) for _ in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    finally:
        sys.setswitchinterval(before)
    found = {each.metric: each.values for each in numbers.read()}
    assert found[catalogue.KAFKA_ERRORS] == {("", "x"): 20_000}
    assert sum(found[catalogue.PUBLISH]["",].counts) == 20_000


def test_what_comes_with_each_message_is_counted_apart_from_it(collection: Collection) -> None:
    """A message costs an append; a thread counts soon, also what no scrape asks for."""
    observed: list[float] = []
    collection.numbers.observer = lambda metric, labels, value: observed.append(value)
    for _ in range(1_000):
        hooks.slot(slot())
        hooks.published(0.5)
    assert observed == [], "nothing is counted on the thread that sends"
    thread = spawn(collection.keep_up, name="test")
    wait_until(lambda: len(observed) == 2_000, timeout=20, what="all values")
    collection.end()
    assert thread.join(5)


def test_a_value_on_a_bound_is_in_its_bucket() -> None:
    """As Prometheus has it: `le` is less or equal."""
    found = Distribution((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 3.0):
        found.add(value)
    assert (found.counts, found.sum) == ([2, 2, 1], 8.0)


# -- for Prometheus --


def families(text: str) -> dict[str, Any]:
    return {each.name: each for each in text_string_to_metric_families(text)}


@pytest.fixture
def started(app: Celery, leadership: Any) -> Iterator[collect.Part]:
    """The metrics of a beat, as its process shows them."""
    part = collect.start(app, leadership)
    assert part is not None
    yield part
    part.stop()


def test_every_metric_is_exported_as_the_catalogue_says(started: collect.Part) -> None:
    """Names, kinds, labels and help of the whole catalogue, by the text that Prometheus reads."""
    tell_everything()
    told = prometheus.exposition()
    assert told is not None
    found = families(told[0].decode())
    for metric in catalogue.METRICS:
        family = found[metric.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (metric.kind, metric.help)
        names = {each.name for each in family.samples}
        suffixes = ("_bucket", "_count", "_sum") if metric.kind == catalogue.HISTOGRAM else ("",)
        assert {metric.name + suffix for suffix in suffixes} <= names
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(metric.labels)
    assert told[1].startswith("text/plain")
    lateness = {each.labels.get("le"): each.value for each in found["celery_neli_slot_lateness_seconds"].samples}
    assert (lateness["0.1"], lateness["0.25"], lateness["60.0"], lateness["+Inf"]) == (0, 1, 1, 1)
    ours = {name for name in found if name.startswith(catalogue.PREFIX)}
    assert ours == {each.name.removesuffix("_total") for each in catalogue.METRICS}


def test_open_metrics_are_given_to_those_that_ask(started: collect.Part) -> None:
    """Prometheus does, by default."""
    told = prometheus.exposition("application/openmetrics-text; version=1.0.0")
    assert told is not None
    assert told[0].endswith(b"# EOF\n")
    assert "openmetrics" in told[1]


def test_two_elections_of_one_process_do_not_clash(app: Celery, started: collect.Part) -> None:
    """A worker with an embedded beat, or tests; the metrics go with the last one."""
    second: Any = Leadership("shop.worker")
    part = collect.start(app, second)
    assert part is not None

    def elections() -> set[str]:
        told = prometheus.exposition()
        assert told is not None
        family = families(told[0].decode()).get("celery_neli_leader")
        return set() if family is None else {each.labels["election"] for each in family.samples}

    assert elections() == {"beat", "worker"}
    part.stop()
    assert elections() == {"beat"}
    started.stop()
    assert elections() == set()
    started.stop()
    assert not hooks.turn


def test_a_name_that_the_application_has_costs_one_line(
    app: Celery, leadership: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """And not the application's metrics, nor the beat."""
    theirs = Counter("celery_neli_slots", "of the application")
    try:
        part = collect.start(app, leadership)
        assert part is not None
        part.stop()
        told = prometheus.exposition()
        assert told is not None
        assert b"of the application" in told[0]
    finally:
        REGISTRY.unregister(theirs)
    assert [each.levelno for each in caplog.records if "metrics not shown" in each.message] == [logging.WARNING]


def test_a_failure_of_ours_leaves_the_applications_metrics(caplog: pytest.LogCaptureFixture) -> None:
    """They are on the same page; the failure is logged once."""

    def read() -> Any:
        raise RuntimeError("broken")

    registry = CollectorRegistry()
    registry.register(prometheus.Exporter(read))
    Counter("theirs", "of the application", registry=registry)
    assert [each.name for _ in range(2) for each in registry.collect()] == ["theirs", "theirs"]
    assert len(caplog.records) == 1


def test_a_forked_child_shows_and_counts_nothing(started: collect.Part) -> None:
    """A pool's child would show its parent's numbers a second time, and could wait for ever for a lock."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            told = prometheus.exposition()
            assert told is not None
            os.write(write, json.dumps([bool(hooks.slot), b"celery_neli" in told[0]]).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    assert json.loads(os.read(read, 1000)) == [False, False]
    os.close(read)
    assert hooks.slot


WITHOUT = """
import importlib.machinery, json
real = importlib.machinery.PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in ("prometheus_client", "opentelemetry") else real(name, path, target)
importlib.machinery.PathFinder.find_spec = find_spec
from celery import Celery
from celery_neli import hooks
from celery_neli.metrics import collect, prometheus
print(json.dumps([collect.start(Celery(), None), bool(hooks.slot), prometheus.exposition()]))
"""


def test_without_the_libraries_nothing_is_kept() -> None:
    """And nothing fails."""
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(done.stdout) == [None, False, None]


GREEN = """
from gevent import monkey
monkey.patch_all()
import json, time
from celery import Celery
from celery_neli import hooks
from celery_neli.metrics import collect, prometheus
from celery_neli.threads import spawn
from tests.unit.test_metrics import Leadership, slot

def tell():
    for _ in range(1_000):
        hooks.slot(slot())
        hooks.kafka_error("_TRANSPORT")

part = collect.start(Celery(), Leadership())
threads = [spawn(tell, name="told") for _ in range(3)]
while not all(each.ended for each in threads):
    prometheus.exposition()
    time.sleep(0.001)
text = prometheus.exposition()[0].decode()
found = [line.rpartition(" ")[2] for line in text.splitlines() if "_TRANSPORT" in line or 'outcome="sent"' in line]
began = time.monotonic()
part.stop()
print(json.dumps([sorted(found), time.monotonic() - began < 1]))
"""


@pytest.mark.skipif(sys.version_info < (3, 11), reason="gevent's interpreter may crash at its exit")
def test_greenlets_and_threads_of_the_system_count_together() -> None:
    """In a worker with gevent's pool, the lease is renewed by a real thread and pages are answered by greenlets."""
    done = subprocess.run(
        [sys.executable, "-c", GREEN], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60
    )
    assert json.loads(done.stdout) == [["3000.0", "3000.0"], True]


# -- for OpenTelemetry --


def test_every_metric_reaches_opentelemetry(collection: Collection) -> None:
    """With the attributes of the catalogue; values of histograms from the first reading on."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    instruments = otel.Instruments(provider.get_meter("celery_neli"))
    instruments.show(collection.read, collection.numbers)

    def found() -> dict[str, Any]:
        data: Any = reader.get_metrics_data()
        if data is None:
            return {}
        return {each.name: each for r in data.resource_metrics for s in r.scope_metrics for each in s.metrics}

    tell_everything()
    assert "celery_neli.tick_duration" not in found()
    tell_everything()
    instruments.hide()
    instruments.show(collection.read, collection.numbers)
    tell_everything()
    every = wait_until(lambda: (f := found()) and len(f) == len(catalogue.METRICS) and f, what="all metrics", timeout=5)
    for metric in catalogue.METRICS:
        each = every[metric.otel_name]
        assert (each.unit, each.description) == (metric.unit, metric.help)
        assert {tuple(point.attributes) for point in each.data.data_points} == {metric.labels}
    assert every["celery_neli.slots"].data.data_points[0].value == 3
    assert every["celery_neli.slots"].data.is_monotonic
    assert every["celery_neli.leader"].data.data_points[0].value == 1
    assert tuple(every["celery_neli.tick_duration"].data.data_points[0].explicit_bounds) == catalogue.TICK.buckets
    instruments.hide()
    assert collection.numbers.observer is None
    hooks.kafka_error("later")
    assert "celery_neli.kafka_errors" not in found()
    provider.shutdown()


GLOBAL = """
import json
from celery import Celery
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from celery_neli import hooks
from celery_neli.metrics import collect
from tests.unit.test_metrics import Leadership

part = collect.start(Celery(), Leadership())
hooks.kafka_error("_TRANSPORT")
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
[scope] = reader.get_metrics_data().resource_metrics[0].scope_metrics
print(json.dumps([scope.scope.name, sorted(each.name for each in scope.metrics if "kafka" in each.name)]))
part.stop()
"""


def test_the_global_meter_provider_may_be_set_later() -> None:
    """An application sets it in a signal's receiver, maybe after the beat has begun."""
    done = subprocess.run([sys.executable, "-c", GLOBAL], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(done.stdout) == ["celery_neli", ["celery_neli.kafka_errors"]]


# -- the page --


def test_the_page_of_metrics() -> None:
    """It is what `python -m celery_neli.metrics.catalogue` prints."""
    command = [sys.executable, "-W", "error", "-m", "celery_neli.metrics.catalogue"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert (ROOT / "docs" / "metrics.md").read_text() == told


def test_names_follow_prometheus_conventions() -> None:
    """Base units, `_total` for counters and only there; a label `group` first."""
    for each in catalogue.METRICS:
        assert each.name.startswith("celery_neli_")
        assert (each.kind == catalogue.COUNTER) == each.name.endswith("_total")
        assert (each.kind == catalogue.HISTOGRAM) == bool(each.buckets)
        assert each.labels[0] == "group"
        assert each.help.endswith(".")
    assert len({each.name for each in catalogue.METRICS}) == len(catalogue.METRICS)


def test_the_group_of_each_election_is_shown_as_neli_group() -> None:
    """That of the watcher, too, which is no election of beats or workers."""
    assert [collect.split(f"shop.eu.{each}") for each in ("beat", "worker", "watch")] == [
        ("shop.eu", "beat"), ("shop.eu", "worker"), ("shop.eu", "watch"),
    ]  # fmt: skip
