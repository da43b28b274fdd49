"""Leader-only tasks a second against ordinary ones: one prefork worker, Redis, the embedded Kafka, alternating rounds.

The messages are parked under another name and moved to the worker's queue at once, so that no sender is measured.
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from celery import Celery

from benchmarks.measure import ratio
from benchmarks.results import Results
from celery_neli import install, leader_only
from celery_neli.embedded import EmbeddedKafka
from celery_neli.worker.task_marking import role_queue

TASKS, ROUNDS, PATIENCE = 1000, 7, 60.0
PARKED = "parked"

app = Celery("bench", broker=os.environ.get("BENCH_REDIS", "memory://"), set_as_current=False)
app.conf.update(
    neli_group="bench", neli_kafka=os.environ.get("BENCH_KAFKA", "127.0.0.1:1"), task_ignore_result=True,
    worker_hijack_root_logger=False,
)  # fmt: skip
install(app)


def mark() -> None:
    """One byte for each run."""
    file = os.open(os.environ["BENCH_MARKS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, b".")
    os.close(file)


@app.task(name="bench.ordinary")
def ordinary() -> None:
    mark()


@app.task(name="bench.led")
@leader_only
def led() -> None:
    mark()


@contextmanager
def started(command: list[str], **options: Any) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
    try:
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE)


@contextmanager
def redis(server: str) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with started([server, "--bind", "127.0.0.1", "--port", str(port), "--save", ""]):
        yield f"redis://127.0.0.1:{port}/0"


def until(marks: Path, number: int) -> None:
    end = time.monotonic() + PATIENCE
    while not marks.exists() or marks.stat().st_size < number:
        if time.monotonic() > end:
            raise TimeoutError(f"the worker ran fewer than {number} tasks in {PATIENCE:g} s")
        time.sleep(0.002)


def batch(task: Any, queue: str, marks: Path) -> float:
    """Seconds from the first message's arrival to the last run."""
    marks.unlink(missing_ok=True)
    with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
        for _ in range(TASKS):
            task.apply_async(queue=PARKED, producer=producer)
        began = time.monotonic()
        connection.default_channel.client.rename(PARKED, queue)
        until(marks, TASKS)
    return time.monotonic() - began


def run(bench: Results) -> None:
    server = shutil.which("redis-server")
    if server is None:
        bench.left_out("throughput", "tasks a second", "what it costs", "see each", "no redis-server")
        return
    with tempfile.TemporaryDirectory() as directory, EmbeddedKafka() as kafka, redis(server) as url:
        marks = Path(directory, "marks")
        told = {"BENCH_REDIS": url, "BENCH_KAFKA": kafka.bootstrap_servers, "BENCH_MARKS": str(marks)}
        app.conf.broker_url = url
        command = [sys.executable, "-m", "celery", "-A", "benchmarks.throughput", "worker", "-c", "2"]
        with started(command, env={**os.environ, **told}):
            led.delay()
            until(marks, 1)
            queues = {ordinary: "celery", led: role_queue(app, None).name}
            taken: dict[Any, list[float]] = {task: [] for task in queues}
            for _ in range(ROUNDS):
                for task, queue in queues.items():
                    taken[task].append(batch(task, queue, marks))
    values = {
        "ordinary tasks a second": TASKS / statistics.median(taken[ordinary]),
        "leader-only tasks a second": TASKS / statistics.median(taken[led]),
        "leader-only / ordinary": ratio(taken[ordinary], taken[led]),
    }
    bench.note("throughput", values)
