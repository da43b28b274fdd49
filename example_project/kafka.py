"""The demo's Kafka, as a process of its own: prints its address, and runs until it is stopped.

`celery neli kafka` does the same on a fixed port. This one takes a free port, and keeps the tasks in one partition:
then the order in which the worker receives them is the order in which they reached the broker. It makes the schedule
topic, too: beats in other processes cannot.
"""

from __future__ import annotations

import signal
import sys

from celery_neli.embedded import EmbeddedKafka


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    with EmbeddedKafka() as kafka:
        kafka.create_topic("celery", partitions=1)
        kafka.create_topic("example.beat.neli.schedule", partitions=17)
        print(kafka.bootstrap_servers, flush=True)
        while True:
            signal.pause()


if __name__ == "__main__":
    main()
