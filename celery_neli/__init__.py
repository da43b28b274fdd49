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
    from celery_neli.beat.replicated.standalone import ReplicatedScheduler as ReplicatedScheduler
    from celery_neli.beat.scheduler import Scheduler as Scheduler
    from celery_neli.config import Config as Config
    from celery_neli.election.renewal import State as State
    from celery_neli.election.role_state import LeaderAcquired as LeaderAcquired
    from celery_neli.election.role_state import LeaderFenced as LeaderFenced
    from celery_neli.election.role_state import LeaderRevoked as LeaderRevoked
    from celery_neli.exceptions import ClosedError as ClosedError
    from celery_neli.exceptions import ConfigurationError as ConfigurationError
    from celery_neli.exceptions import Conflict as Conflict
    from celery_neli.exceptions import LeadershipLost as LeadershipLost
    from celery_neli.exceptions import NeliError as NeliError
    from celery_neli.exceptions import NotLeader as NotLeader
    from celery_neli.exceptions import TopicError as TopicError
    from celery_neli.kafka import Neli as Neli
    from celery_neli.schedule.cron import cron as cron
    from celery_neli.singletons import singleton as singleton
    from celery_neli.worker.bootsteps import install as install
    from celery_neli.worker.leader_only import current_term as current_term
    from celery_neli.worker.leader_only import leader_only as leader_only
    from celery_neli.worker.leader_only import roles as roles
    from celery_neli.worker.leader_only import still_leader as still_leader

__version__ = "0.1.0"

_PUBLIC = {
    "beat.replicated.standalone": ("ReplicatedScheduler",),
    "beat.scheduler": ("Scheduler",),
    "config": ("Config",),
    "election.renewal": ("State",),
    "election.role_state": ("LeaderAcquired", "LeaderFenced", "LeaderRevoked"),
    "exceptions": (
        "ClosedError",
        "ConfigurationError",
        "Conflict",
        "LeadershipLost",
        "NeliError",
        "NotLeader",
        "TopicError",
    ),
    "kafka": ("Neli",),
    "schedule.cron": ("cron",),
    "singletons": ("singleton",),
    "worker.bootsteps": ("install",),
    "worker.leader_only": ("current_term", "leader_only", "roles", "still_leader"),
}
_MODULES = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used (PEP 562), since every `celery` command imports this package."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
