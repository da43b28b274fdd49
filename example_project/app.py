"""A Celery app whose beats elect a leader. Yours needs the lines marked "celery-neli", and not all of them."""

from __future__ import annotations

import os

from celery import Celery

#: The Kafka that elects.
KAFKA = os.environ.get("EXAMPLE_KAFKA", "localhost:9092")
#: It can carry the tasks as well, by kombu's Kafka transport. Any other broker does: EXAMPLE_BROKER=redis://localhost
BROKER = os.environ.get("EXAMPLE_BROKER", f"confluentkafka://{KAFKA}//")

app = Celery("example", broker=BROKER)
app.conf.update(
    # celery-neli: any number of beats may run, one sends.
    beat_scheduler="celery_neli.Scheduler",
    neli_group="example",
    neli_kafka=KAFKA,
    # celery-neli: workers elect a leader, too.
    imports=["celery_neli.auto"],
    # Celery's own: a task a second, on the full second.
    beat_schedule={
        "every-second": {
            "task": "example.tick",
            "schedule": 1.0,
            "relative": True,
            # celery-neli: every slot runs, also those that passed while nobody led. By default the newest one does.
            "options": {"neli_misfire": "fire_all"},
        }
    },
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
)
if BROKER.startswith("confluentkafka:"):
    app.conf.update(
        # kombu's Kafka transport has no remote control (celery inspect, celery control).
        worker_enable_remote_control=False,
        broker_transport_options={
            # kombu sleeps so long after it found nothing (its default is 1 s).
            "polling_interval": 0.05,
            # For so long it waits for a message of each queue in turn, also of an empty one; and for the broker itself.
            "wait_time_seconds": 0.2,
            "kafka_consumer_config": {
                "allow.auto.create.topics": True,
                # After a worker's death the next one gets its messages so much later.
                "session.timeout.ms": 6000,
                # The embedded Kafka makes every fetch wait for so long.
                "fetch.wait.max.ms": 50,
            },
        },
    )


@app.task(name="example.tick")
def tick() -> None:
    """Whatever is to run once a second, and not once a second per beat."""
