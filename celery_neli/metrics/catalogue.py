"""Every metric once: name, kind, labels and meaning. `python -m celery_neli.metrics.catalogue` prints docs/metrics.md.

The names follow Prometheus' conventions: base units, `_total` for counters. OpenTelemetry's names follow from them, so
that its exporter to Prometheus gives the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Final

from celery_neli import hooks

COUNTER: Final = "counter"
GAUGE: Final = "gauge"
HISTOGRAM: Final = "histogram"
PREFIX: Final = "celery_neli_"
SECONDS: Final = "_seconds"
TOTAL: Final = "_total"

#: Bounds (seconds). Of heartbeats: the default lease is 4 s.
_ROUND_TRIPS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
_LATENESS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)
_TURNS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
_PUBLISHING: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)

ELECTION: Final = ("group", "election", "role")


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. The first of its `labels` is always `group`; a histogram has `buckets`, their upper bounds."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()

    @property
    def unit(self) -> str:
        """The unit as OpenTelemetry writes it: "s", or "" for none."""
        return "s" if self.name.removesuffix(TOTAL).endswith(SECONDS) else ""

    @property
    def otel_name(self) -> str:
        """The name for OpenTelemetry: without unit and kind, which its exporter to Prometheus appends."""
        return "celery_neli." + self.name.removeprefix(PREFIX).removesuffix(TOTAL).removesuffix(SECONDS)


INFO: Final = Metric(
    "celery_neli_info", GAUGE, ("group", "election", "name", "version"),
    "Always 1; the name of this process, as `celery neli status` shows it, and the version of celery-neli.",
)  # fmt: skip
LEADER: Final = Metric(
    "celery_neli_leader", GAUGE, ELECTION, "1 if this process leads the role and may start work, else 0."
)
TERM: Final = Metric(
    "celery_neli_term", GAUGE, ELECTION, "The number of the newest term of the role, as far as this process has read."
)
LEASE: Final = Metric(
    "celery_neli_lease_seconds",
    GAUGE,
    ELECTION,
    "How long a lease lasts that is not renewed: `neli_heartbeat_timeout`.",
)
MARGIN: Final = Metric(
    "celery_neli_lease_margin_seconds", GAUGE, ELECTION,
    "Of a leader: the least seconds that its lease had left, since the last scrape and for a minute at least; 0 if it "
    "ran out.",
)  # fmt: skip
ROUND_TRIP: Final = Metric(
    "celery_neli_heartbeat_round_trip_seconds", HISTOGRAM, ELECTION,
    "Of a leader: from the sending of a heartbeat until it was read back. A leader may read up to half of "
    "`neli_heartbeat_interval` late.", _ROUND_TRIPS,
)  # fmt: skip
TERMS_BEGUN: Final = Metric(
    "celery_neli_terms_begun_total", COUNTER, (*ELECTION, "after"),
    "Terms that this process has begun, by how the term before ended: `released`, `expired`, `deposed`, `unknown`.",
)  # fmt: skip
TERMS_ENDED: Final = Metric(
    "celery_neli_terms_ended_total", COUNTER, (*ELECTION, "cause"),
    "Terms of this process that ended, by cause (see below).",
)  # fmt: skip
LEADERLESS: Final = Metric(
    "celery_neli_leaderless_seconds_total", COUNTER, ELECTION,
    "Seconds between the terms that this process has begun and the ones before: from the release, or from the end of a "
    "lease that ran out. Each gap is counted by one process, the new leader.",
)  # fmt: skip
WITHOUT_LEADER: Final = Metric(
    "celery_neli_without_leader_seconds", GAUGE, ELECTION,
    "For how many seconds no process has led the role, as far as this one has read; 0 while one leads.",
)  # fmt: skip
SLOTS: Final = Metric(
    "celery_neli_slots_total", COUNTER, ("group", "role", "outcome", "policy"),
    "Slots by what became of them: `sent`, `failed` (each failed attempt; it is retried), `refused` by the "
    "application, `in_doubt` (policy `send` or `skip`), `skipped` (policy `misfire` or `overlap`).",
)  # fmt: skip
LATENESS: Final = Metric(
    "celery_neli_slot_lateness_seconds", HISTOGRAM, ("group", "role"),
    "Of slots that were sent: from the slot until its message had left.", _LATENESS,
)  # fmt: skip
LAST_SLOT: Final = Metric(
    "celery_neli_entry_last_slot_timestamp_seconds", GAUGE, ("group", "entry"),
    "The latest slot of the entry that this process sent, in Unix seconds. Entries beyond `neli_metrics_entries` count "
    "together as `(others)`.",
)  # fmt: skip
TICK: Final = Metric(
    "celery_neli_tick_duration_seconds", HISTOGRAM, ("group",),
    "How long one turn of the beat took, for all its roles, without what it waited.", _TURNS,
)  # fmt: skip
PUBLISH: Final = Metric(
    "celery_neli_publish_duration_seconds", HISTOGRAM, ("group",),
    "How long the task broker took for the message of a slot; with `confirm_publish`, until it confirmed.", _PUBLISHING,
)  # fmt: skip
OVERDUE: Final = Metric(
    "celery_neli_overdue_alarms_total", COUNTER, ("group", "reason"),
    "Alarms that this process raised, as the one that watches: of a slot that was `not_sent`, `failed`, `refused` or "
    "`not_started` in time, and of a task that is `not_finished` (signals `slot_overdue` and `run_overdue`).",
)  # fmt: skip
RUNS: Final = Metric(
    "celery_neli_runs_total", COUNTER, ("group", "state"),
    "What the tasks of slots did in this worker: `started`, `succeeded`, `failed`, `retried`, `revoked`, `rejected`, "
    "`ignored`. Kept while the run history is on (`neli_history`).",
)  # fmt: skip
HISTORY_WAITING: Final = Metric(
    "celery_neli_history_waiting", GAUGE, ("group", "election"),
    "Records of the run history that Kafka has not acknowledged yet.",
)  # fmt: skip
HISTORY_LAG: Final = Metric(
    "celery_neli_history_lag_seconds", GAUGE, ("group", "election"),
    "The age of the oldest record of the run history that Kafka has not acknowledged yet.",
)  # fmt: skip
HISTORY_DROPPED: Final = Metric(
    "celery_neli_history_dropped_total", COUNTER, ("group", "election"),
    "Records of the run history that were lost: Kafka did not take them in time, or refused them.",
)  # fmt: skip
KAFKA_ERRORS: Final = Metric(
    "celery_neli_kafka_errors_total", COUNTER, ("group", "error"),
    "Errors that the Kafka clients of this process reported, by librdkafka's name.",
)  # fmt: skip
LEADER_TASKS: Final = Metric(
    "celery_neli_leader_tasks_total", COUNTER, ("group", "role", "action"),
    "Leader-only tasks that reached this worker and that it did not run: `forwarded`, `sent_back`, `skipped`.",
)  # fmt: skip
SINGLETON_TURNS: Final = Metric(
    "celery_neli_singleton_turns_total", COUNTER, ("group", "role", "singleton"),
    "Turns of a `@singleton` here, also those that failed.",
)  # fmt: skip
SINGLETON_FAILURES: Final = Metric(
    "celery_neli_singleton_failures_total", COUNTER, ("group", "role", "singleton"),
    "Turns of a `@singleton` here that failed.",
)  # fmt: skip

METRICS: Final = (
    INFO, LEADER, TERM, LEASE, MARGIN, ROUND_TRIP, TERMS_BEGUN, TERMS_ENDED, LEADERLESS, WITHOUT_LEADER,
    SLOTS, LATENESS, LAST_SLOT, TICK, PUBLISH, OVERDUE, RUNS, HISTORY_WAITING, HISTORY_LAG, HISTORY_DROPPED,
    KAFKA_ERRORS, LEADER_TASKS, SINGLETON_TURNS, SINGLETON_FAILURES,
)  # fmt: skip


@cache
def version() -> str:
    """Return the version of celery-neli; "" if it is not installed as a package."""
    try:
        return metadata.version("celery-neli")
    except metadata.PackageNotFoundError:
        return ""


_CAUSES: Final = {
    hooks.ASKED: "another member asked for the role, or `celery neli` for a handover",
    hooks.CLOSED: "the process stopped",
    hooks.RESIGNED: "code of the process wanted it",
    hooks.FAILING: "the process cannot serve the role",
    hooks.STALLED: "no progress for `neli_stall_timeout`, or unfit to lead",
    hooks.EXPIRED: "the lease ran out: no heartbeat was read back in time, so Kafka is away or slow",
    hooks.FROZEN: "the lease ran out: the process stood still",
    hooks.UNDRAINED: "running work did not end within `neli_drain_timeout`",
    hooks.DEPOSED: "another member claimed the role",
    hooks.LOG_LOST: "the leader topic was lost, or differs from the one that was read",
    hooks.CRASHED: "the thread that renews the lease failed: a bug",
}

_PAGE: Final = """\
# Metrics

A beat or worker that takes part in an election keeps these metrics in its main process. They are for Prometheus \
(`pip install "celery-neli[metrics]"`) and for OpenTelemetry (`pip install "celery-neli[otel]"`); with neither \
library nothing is kept. This page is the output of `python -m celery_neli.metrics.catalogue`.

- **Prometheus:** the metrics are in the default registry of prometheus-client. With [`neli_http`](settings.md), each \
process answers `/metrics`, with whatever else the application has in that registry. An application that exports the \
registry itself shows them as well.
- **OpenTelemetry:** the instruments belong to the global meter provider, which the application sets. Their names are \
those below, with `celery_neli.` in front and without `_seconds` and `_total`, which are unit and kind: \
`celery_neli.slots` is a counter, and `celery_neli.lease_margin` a gauge in seconds. An exporter to Prometheus makes \
the names below of them.
- **Dashboard and alerts:** [`contrib/grafana`](../contrib/grafana/celery-neli.json) and \
[`contrib/prometheus`](../contrib/prometheus/celery-neli.rules.yml); see \
[operations.md](operations.md#metrics-and-alerts).

`group` is `neli_group`, `election` is `beat` or `worker`; the terms and heartbeats of the watcher \
([alarms](alarms.md#who-watches)) have `watch`.

| metric | kind | labels | meaning |
|---|---|---|---|
{rows}

## How they count

- **Each process counts what it does.** Add up over processes: `sum by (role) (celery_neli_leader)` is 1 while the \
role is led. At a handover two scrapes of different moments may show 2 or 0, so an alert waits for a minute.
- **A process that is killed counts nothing.** Its term is in `celery_neli_terms_begun_total{{after="expired"}}` of \
the one that follows, as is the gap in `celery_neli_leaderless_seconds_total`. A gap that lasts shows in \
`celery_neli_without_leader_seconds`. A lease that runs out ends up to `neli_heartbeat_timeout` after the leader's \
death.
- **Counters begin at 0** with each process, and with the first election of a process.
- **Pools:** the children of prefork show nothing; no metric is counted in them but `celery_neli_leader_tasks_total`, \
for a task whose lease ended between its arrival and its body: such a child counts it for itself, and it is not \
shown. The same holds for files that prometheus-client keeps for several processes (`PROMETHEUS_MULTIPROC_DIR`): they \
do not have these metrics.
- **Entries:** the first `neli_metrics_entries` that a process sends have a series each, and the others share one, \
`(others)`. After a failover, the former leader still shows its last slots: take the `max by (entry)`.

## Causes of the end of a term

| `cause` | means |
|---|---|
{causes}"""


def page() -> str:
    """Return the Markdown page `docs/metrics.md`."""
    rows = (
        f"| `{each.name}` | {each.kind} | {', '.join(f'`{label}`' for label in each.labels)} | {each.help} |"
        for each in METRICS
    )
    causes = (f"| `{each}` | {_CAUSES[each]} |" for each in hooks.CAUSES)
    return _PAGE.format(rows="\n".join(rows), causes="\n".join(causes))


if __name__ == "__main__":
    print(page())
