"""celery-neli: an elected leader in every Celery beat and worker, on the Kafka that you already run.

You may start any number of `celery beat -S celery_neli.Scheduler`; one of them sends. The election is NELI, "leader
induction" over a Kafka consumer group. A lease makes it safe, which the leader renews in the log of a leader topic
(docs/protocol.md). Workers hold an election of their own: `@leader_only` tasks and `@singleton` functions run in the
worker that leads (docs/workers.md).

Read the packages in this order, as each imports only those before it: `election` and `schedule`, `kafka`,
`schedule_topic`, `periodic`, `beat`, `worker`, `singletons`. Importing celery_neli starts no thread, opens no socket
and does not load confluent_kafka.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery_neli.beat.replicated.standalone import ReplicatedScheduler
    from celery_neli.beat.scheduler import Scheduler
    from celery_neli.config import Config
    from celery_neli.election.renewal import State
    from celery_neli.election.role_state import LeaderAcquired, LeaderFenced, LeaderRevoked
    from celery_neli.exceptions import (
        ClosedError,
        ConfigurationError,
        LeadershipLost,
        NeliError,
        NotLeader,
        TopicError,
    )
    from celery_neli.kafka.connect import Neli
    from celery_neli.singletons.decorator import singleton
    from celery_neli.worker.bootsteps import install
    from celery_neli.worker.leader_only import current_term, leader_only, roles, still_leader

__version__ = "0.1.0"
__all__ = [
    "ClosedError",
    "Config",
    "ConfigurationError",
    "LeaderAcquired",
    "LeaderFenced",
    "LeaderRevoked",
    "LeadershipLost",
    "Neli",
    "NeliError",
    "NotLeader",
    "ReplicatedScheduler",
    "Scheduler",
    "State",
    "TopicError",
    "current_term",
    "install",
    "leader_only",
    "roles",
    "singleton",
    "still_leader",
]

_HOMES = {
    "Config": "config",
    "ConfigurationError": "exceptions",
    "ClosedError": "exceptions",
    "NeliError": "exceptions",
    "TopicError": "exceptions",
    "LeaderAcquired": "election.role_state",
    "LeaderFenced": "election.role_state",
    "LeaderRevoked": "election.role_state",
    "Neli": "kafka.connect",
    "State": "election.renewal",
    "ReplicatedScheduler": "beat.replicated.standalone",
    "Scheduler": "beat.scheduler",
    "install": "worker.bootsteps",
    "LeadershipLost": "exceptions",
    "NotLeader": "exceptions",
    "current_term": "worker.leader_only",
    "leader_only": "worker.leader_only",
    "roles": "worker.leader_only",
    "still_leader": "worker.leader_only",
    "singleton": "singletons.decorator",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used (PEP 562), since every `celery` command imports this package."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
