"""What an idle member costs: CPU in percent of one core, and memory over importing confluent_kafka.

Each member is a process of its own; the embedded Kafka runs in this one.
"""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.results import Results
from celery_neli.embedded import EmbeddedKafka

SECONDS = 20
MEMBER = f"""
import json, sys, time
import confluent_kafka, psutil
process = psutil.Process()
before = process.memory_info().rss
from celery_neli import Config, Neli
with Neli(Config(group="idle", kafka=sys.argv[1])) as neli:
    leads = neli.pulse(8)
    first, began = process.cpu_times(), time.monotonic()
    time.sleep({SECONDS})
    last, took = process.cpu_times(), time.monotonic() - began
    cpu = (last.user + last.system - first.user - first.system) / took
    print(json.dumps([leads, 100 * cpu, (process.memory_info().rss - before) / 1e6]))
"""


def run(bench: Results) -> None:
    rows: dict[str, float] = {}
    with EmbeddedKafka() as kafka:
        kafka.create_topic("idle.neli")
        command = [sys.executable, "-c", MEMBER, kafka.bootstrap_servers]
        members = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
        for member in members:
            leads, cpu, memory = json.loads(member.communicate()[0])
            who = "leader" if leads else "standby"
            rows[f"{who}, CPU in % of a core"] = cpu
            rows[f"{who}, MB over importing confluent_kafka"] = memory
    bench.note("idle", rows)
