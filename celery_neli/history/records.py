"""The records of the history topic, as values and as bytes.

A value is a UTF-8 JSON object with a version, as in the leader topic. Its key is the name of the entry, so that all of
an entry is in one partition. Reading is strict: what is not exactly as written here raises `RecordError`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotRecord:
    """What became of a slot, as the beat `member` tells. The fields are those of `hooks.SlotEvent`."""

    entry: str
    task: str
    slot: float | None
    outcome: str
    at: float
    member: str
    role: str = ""
    term: int | None = None
    id: str | None = None
    policy: str = ""
    count: int = 1
    first: float | None = None
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What the task of a slot did, as the `worker` tells that has it. `state` is one of `runs.STATES`."""

    entry: str
    task: str
    slot: float | None
    id: str | None
    state: str
    at: float
    worker: str
    runtime: float | None = None
    retries: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRecord:
    """A worker that reports what the tasks of slots do has started; if `stopped`, it has ended."""

    worker: str
    at: float
    queues: tuple[str, ...] = ()
    stopped: bool = False


Record = SlotRecord | RunRecord | WorkerRecord
