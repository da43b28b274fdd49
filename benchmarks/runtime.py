"""The runtime schedule as a web process uses it: how long one change takes, beside RedBeat and django-celery-beat.

Ours is on a real node of Kafka, which acknowledges a change when it is in the log (`acks=all`); RedBeat's is on Redis
in memory, django-celery-beat's on SQLite and on PostgreSQL, all on this machine. Each contender is a process of its
own, one after another. What a change of ours cannot go below is one round trip of an acknowledged record: the figure
"acknowledged record".
"""

from __future__ import annotations

import contextlib
import getpass
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from benchmarks.brokers import redis_url
from benchmarks.measure import quantile
from benchmarks.results import Results
from benchmarks.runtime_process import times
from tests import services
from tests.kafka import libs
from tests.kafka.cluster import KafkaCluster
from tests.processes import free_ports

SIZES = (100, 100_000)


def run(bench: Results) -> None:
    """Measure."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        kafka = stack.enter_context(_kafka(directory / "kafka"))
        stores = {
            "celery-neli": ("neli", kafka, "no Java 17, or Kafka was not fetched"),
            "redbeat": ("redbeat", stack.enter_context(redis_url()), "no redis-server"),
            "django, sqlite": ("django", str(directory / "bench.sqlite3"), ""),
            "django, postgresql": ("django", stack.enter_context(_postgresql(directory)), "no postgresql"),
        }
        if kafka is not None:
            _floor(bench, kafka)
        found: dict[tuple[str, int], dict[str, Any]] = {}
        for size in bench.options.chosen(SIZES):
            for case, (kind, url, why) in stores.items():
                if url is None:
                    bench.left_out("runtime", case, "save, median", "ms", why, size=size)
                    continue
                found[case, size] = told = _ask(kind, url, size)
                for what in ("save", "add", "get"):
                    if what in told:
                        milliseconds = [1000 * each for each in told[what]]
                        bench.add("runtime", case, f"{what}, median", "ms", milliseconds, size=size)
                        bench.add("runtime", case, f"{what}, 95 %", "ms", [quantile(milliseconds, 0.95)], size=size)
                _ours(bench, case, told, size)
            if kafka is not None:
                told = _ask("memory", kafka, size)
                _ours(bench, "celery-neli, only puts", told, size)
                if size == max(SIZES):
                    bench.claim("memory of a process that only puts, MB", told["memory"], most=30)
    _claims(bench, found)


def _ours(bench: Results, case: str, told: dict[str, Any], size: int) -> None:
    shown = {
        "first": ("first call", "ms", 1000.0),
        "batch": ("10,000 puts by batch", "s", 1.0),
        "list": ("list", "1/s", 1.0),
        "memory": ("memory above Celery", "MB", 1.0),
        "idle": ("CPU afterwards", "%", 1.0),
    }
    for what, (metric, unit, factor) in shown.items():
        if what in told:
            bench.add("runtime", case, metric, unit, [factor * told[what]], size=size)


def _claims(bench: Results, found: dict[tuple[str, int], dict[str, Any]]) -> None:
    large = max(SIZES)
    ours, redbeat = found.get(("celery-neli", large)), found.get(("redbeat", large))
    if ours is None:
        return
    save = quantile(ours["save"], 0.5)
    if redbeat is not None:
        bench.claim("put / RedBeat's save, 100,000 entries", save / quantile(redbeat["save"], 0.5), most=2)
    bench.claim("put, 100,000 entries, ms", 1000 * save, most=20)
    bench.claim("get, 100,000 entries, ms", 1000 * quantile(ours["get"], 0.5), most=20)
    bench.claim("10,000 puts by batch, s", ours["batch"], most=10)
    bench.claim("list, entries a second", ours["list"], least=50_000)
    if (small := found.get(("celery-neli", min(SIZES)))) is not None:
        bench.claim("put, 100,000 entries / 100 entries", save / quantile(small["save"], 0.5), most=1.5)


def _ask(kind: str, url: str, size: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.runtime_process", kind, url, str(size)]
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    if said.returncode:
        raise RuntimeError(f"{kind} {size}: {said.stderr[-2000:]}")
    told: dict[str, Any] = json.loads(said.stdout.splitlines()[-1])
    return told


def _floor(bench: Results, servers: str) -> None:
    """What the log costs: one record, acknowledged."""
    admin = AdminClient({"bootstrap.servers": servers})
    admin.create_topics([NewTopic("floor", 1)])["floor"].result(30)
    producer = Producer({"bootstrap.servers": servers, "acks": "all", "linger.ms": 0})

    def append(_: int) -> None:
        producer.produce("floor", b"x" * 400)
        producer.flush(10)

    append(0)
    took = [1000 * each for each in times(append, list(range(300)))]
    producer.close()
    bench.add("runtime", "kafka", "acknowledged record", "ms", took)


@contextlib.contextmanager
def _kafka(directory: Path) -> Iterator[str | None]:
    java = services.java()
    if java is None or not libs.fetched():
        yield None
        return
    directory.mkdir()
    cluster = KafkaCluster(nodes=1, java=java, libs=libs.directory(), directory=directory)
    try:
        cluster.start()
        yield cluster.bootstrap_servers
    finally:
        cluster.stop()


@contextlib.contextmanager
def _postgresql(directory: Path) -> Iterator[str | None]:
    """A new PostgreSQL, as Debian installs it and with its own settings; "port=…"."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    if not programs:
        yield None
        return
    program, place = programs[-1], Path(tempfile.mkdtemp(prefix="neli-bench-"))
    (port,) = free_ports(1)
    # It refuses to run as root.
    who: dict[str, Any] = {"user": "postgres"} if getpass.getuser() == "root" else {}
    if who:
        shutil.chown(place, "postgres")

    def call(*command: str) -> None:
        subprocess.run([str(program), *command], check=True, capture_output=True, cwd=place, **who)

    data = str(place / "data")
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={place}"
    try:
        call("initdb", "-D", data, "-o", "--username=postgres --auth=trust")
        call("start", "-w", "-D", data, "-l", str(place / "log"), "-o", options)
        try:
            yield f"port={port}"
        finally:
            call("stop", "-m", "immediate", "-D", data)
    finally:
        shutil.rmtree(place, ignore_errors=True)
