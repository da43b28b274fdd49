"""The settings of an election and of its owners, each checked where it is made (`settings.py` lists them)."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from celery_neli.election.records import MAX_LEASE
from celery_neli.exceptions import ConfigurationError
from celery_neli.masking import Masked
from celery_neli.printable import shown
from celery_neli.settings import check_names, not_read

if TYPE_CHECKING:
    from celery import Celery

_KAFKA_NAME = re.compile(r"[A-Za-z0-9._-]+")
NAME_MOST = 249
TOPIC_MOST = NAME_MOST - len(".schedule")
GROUP_MOST = TOPIC_MOST - len(".worker.neli")
_ROLE = re.compile(r"[A-Za-z0-9._-]{1,100}")
_LEADER = "leader"
SHARDS_MOST = 256
PARALLEL_MOST = 64
VERSION_MOST = 1 << 53
SCHEDULE = ".schedule"
"""What a leader topic's name is followed by in that of its schedule topic."""
_SCHEMES = ("plaintext", "ssl", "sasl_plaintext", "sasl_ssl")  # librdkafka's own; others it calls unreachable
ELECTIONS = ("beat", "worker")
STALL_LEAST = 1.0
SECONDS_MOST = 1_000_000_000
"""A wait of Python's threads must not be much longer."""
SESSION_MOST = 3_600
"""librdkafka's limit for the session of a consumer group."""


_NUMBERS = (
    "heartbeat_interval",
    "heartbeat_timeout",
    "session_timeout",
    "takeover_delay",
    "drain_timeout",
    "stall_timeout",
    "rebalance_after",
)


def default_name() -> str:
    """A name for this process: host, process id, start time in seconds."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", f"{socket.gethostname()}_{os.getpid()}_{int(time.time())}")[-200:]


@dataclass(frozen=True, kw_only=True, repr=False)
class Config:
    """One member of one election, checked when it is made. Times are seconds.

    Raises `ConfigurationError`, which names the setting, its value and what to do. `kafka` may hold secrets: neither
    `repr` nor any error of ours shows more of it than names and addresses.
    """

    group: str
    kafka: Mapping[str, Any] | str = "localhost:9092"
    topic: str = ""
    roles: tuple[str, ...] = ("leader",)
    name: str = field(default_factory=default_name)
    heartbeat_interval: float = 0.5
    heartbeat_timeout: float = 4.0
    session_timeout: float = 6.0
    takeover_delay: float = 0.1
    drain_timeout: float = 10.0
    stall_timeout: float = 60.0
    rebalance_after: float = 30.0

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "kafka", _kafka(self.kafka))
        if not self.topic:
            set_(self, "topic", f"{self.group}.neli")
        set_(self, "roles", _roles(self.roles))
        for name in _NUMBERS:
            set_(self, name, _seconds(name, getattr(self, name)))
        for name in ("group", "topic", "name"):
            _refuse_name(f"neli_{name}", getattr(self, name), most=TOPIC_MOST if name == "topic" else NAME_MOST)
        if not self.roles or len(set(self.roles)) != len(self.roles) or not all(map(_is_role, self.roles)):
            raise ConfigurationError(
                f"neli_roles = {self.roles!r}: give one or more names, each once, "
                "of at most 100 of the characters A-Z a-z 0-9 . _ -"
            )
        self._compare()
        from celery_neli.kafka.properties import check  # it needs a configuration to begin with

        check(self)

    def _compare(self) -> None:
        if 3 * self.heartbeat_interval > self.heartbeat_timeout:
            raise ConfigurationError(
                f"neli_heartbeat_timeout = {self.heartbeat_timeout:g} s is less than 3 × neli_heartbeat_interval = "
                f"{self.heartbeat_interval:g} s: one late heartbeat would cost the leadership; "
                "raise the timeout or lower the interval"
            )
        if self.heartbeat_timeout > MAX_LEASE:
            raise ConfigurationError(
                f"neli_heartbeat_timeout = {self.heartbeat_timeout:g} s is above the protocol's limit of "
                f"{MAX_LEASE:g} s; lower it"
            )
        if self.takeover_delay >= self.heartbeat_timeout:
            raise ConfigurationError(
                f"neli_takeover_delay = {self.takeover_delay:g} s is not below neli_heartbeat_timeout = "
                f"{self.heartbeat_timeout:g} s; lower it"
            )
        if self.session_timeout < 1:
            raise ConfigurationError(
                f"neli_session_timeout = {self.session_timeout:g} s is below 1 s; "
                "brokers refuse less than 6 s by default"
            )
        if self.session_timeout > SESSION_MOST:
            raise ConfigurationError(
                f"neli_session_timeout = {self.session_timeout:g} s is above {SESSION_MOST} s, which Kafka's client "
                "refuses, and brokers by default above 1800 s; lower it"
            )
        if self.stall_timeout < STALL_LEAST:
            raise ConfigurationError(
                f"neli_stall_timeout = {self.stall_timeout:g} s is below {STALL_LEAST:g} s; raise it"
            )

    def __repr__(self) -> str:
        shown = {each.name: getattr(self, each.name) for each in fields(self)}
        shown["kafka"] = Masked(self.properties)
        return f"Config({', '.join(f'{key}={value!r}' for key, value in shown.items())})"

    @property
    def schedule_topic(self) -> str:
        """Name of the topic that holds a beat's schedule and its state."""
        return self.topic + SCHEDULE

    @property
    def properties(self) -> Mapping[str, Any]:
        """The librdkafka properties that the user gave. May hold secrets."""
        assert not isinstance(self.kafka, str)  # __post_init__ made it a mapping
        return self.kafka


def _roles(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):  # others have no order, or no lasting one
        raise ConfigurationError(f"neli_roles = {shown(value)}: give a list of names")
    return tuple(value)


def _refuse_name(setting: str, value: Any, *, most: int) -> None:
    if not isinstance(value, str) or not _KAFKA_NAME.fullmatch(value) or len(value) > most or value in (".", ".."):
        raise ConfigurationError(
            f"{setting} = {shown(value)}: use 1 to {most} of the characters that Kafka allows in names: "
            "A-Z a-z 0-9 . _ -"
        )


def _is_role(value: Any) -> bool:
    return isinstance(value, str) and _ROLE.fullmatch(value) is not None


def _seconds(name: str, value: Any) -> float:
    least = 0.0 if name in ("takeover_delay", "drain_timeout") else 0.001
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= SECONDS_MOST:
        raise ConfigurationError(
            f"neli_{name} = {shown(value)}: give a number of seconds from {least:g} to {SECONDS_MOST}"
        )
    return float(value)


def _kafka(value: Any) -> Mapping[str, Any]:
    if isinstance(value, str):
        value = {"bootstrap.servers": value}
    elif isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value):
        value = {"bootstrap.servers": ",".join(value)}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigurationError(
            f"neli_kafka is a {type(value).__name__}: give the bootstrap servers as 'host:port,host:port', "
            "or a dict of librdkafka properties"
        )
    servers = value.get("bootstrap.servers", value.get("metadata.broker.list"))
    if not isinstance(servers, str) or not servers.strip():
        raise ConfigurationError("neli_kafka lacks 'bootstrap.servers': give at least one host:port")
    if "@" in servers:
        raise ConfigurationError(
            "neli_kafka has a server with a user or a password in it: give host:port, and sasl.username and "
            "sasl.password beside 'bootstrap.servers'"
        )
    for server in servers.split(","):
        scheme, found, _ = server.strip().partition("://")
        if found and scheme.lower() not in _SCHEMES:
            raise ConfigurationError(
                f"neli_kafka has the server {server.strip()!r}: give host:port, without {scheme}://"
            )
    given = {k: v for k, v in value.items() if k != "metadata.broker.list"}
    return MappingProxyType(Masked({**given, "bootstrap.servers": servers}))


def enabled(app: Celery) -> bool:
    """Whether `neli_enabled` is on (the default)."""
    return _flag(app, "neli_enabled", default=True)


def _flag(app: Celery, name: str, *, default: bool) -> bool:
    value = app.conf.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} = {shown(value)}: give True or False")
    return value


def from_app(app: Celery, election: str) -> Config:
    """The configuration of `election` ("beat" or "worker") from the app's `neli_*` settings.

    Loads the app's configuration. Raises `ConfigurationError`, also for a `neli_*` setting that does not exist.
    """
    check_names(app)
    given: dict[str, Any] = {"group": f"{_group(app)}.{election}"}
    for name in ("kafka", "name", *_NUMBERS):
        value = app.conf.get(f"neli_{name}")
        if value is not None:
            given[name] = value
    topic = app.conf.get("neli_topic")
    if topic is not None:
        if not isinstance(topic, str) or "{election}" not in topic:
            raise ConfigurationError(
                f"neli_topic = {shown(topic)}: beats and workers need a topic each; "
                "write {election} where their name shall stand"
            )
        given["topic"] = topic.replace("{election}", election)
    if election == "worker" and app.conf.get("neli_roles") is not None:
        given["roles"] = app.conf.neli_roles
    if election == "beat":
        given["roles"] = shard_roles(_whole(app, "neli_shards", 1, least=1, most=SHARDS_MOST))
    return Config(**given)


def shard_roles(shards: int) -> tuple[str, ...]:
    """The roles of a beat election with so many shards. A role keeps its name and its place when more are added."""
    return (_LEADER, *(f"{_LEADER}-{index}" for index in range(1, shards)))


@dataclass(frozen=True, slots=True, kw_only=True)
class BeatSettings:
    """What a beat needs beside its `Config`: whether slots in doubt are sent again; how many publishers work side by
    side; the version of its schedule, None if it has none.
    """

    sends_in_doubt: bool
    parallel: int
    version: int | None


def beat_settings(app: Celery) -> BeatSettings:
    """From the app's settings. Loads its configuration. Raises `ConfigurationError`."""
    in_doubt = app.conf.get("neli_in_doubt")
    if in_doubt not in (None, "send", "skip"):
        raise ConfigurationError(f"neli_in_doubt = {shown(in_doubt)}: give 'send' or 'skip'")
    least_interval(app)
    version = None
    if app.conf.get("neli_schedule_version") is not None:
        version = _whole(app, "neli_schedule_version", 0, least=0, most=VERSION_MOST)
    return BeatSettings(
        sends_in_doubt=in_doubt != "skip",
        parallel=_whole(app, "neli_publish_parallel", 1, least=1, most=PARALLEL_MOST),
        version=version,
    )


def least_interval(app: Celery) -> float:
    """Return `neli_least_interval` in seconds. Loads the app's configuration. Raises `ConfigurationError`."""
    value = app.conf.get("neli_least_interval")
    return 1.0 if value is None else _seconds("least_interval", value)


def _whole(app: Celery, name: str, default: int, *, least: int, most: int) -> int:
    value = app.conf.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigurationError(f"{name} = {shown(value)}: give a whole number from {least} to {most}")
    return value


def _group(app: Celery) -> str:
    """The setting `neli_group`. Raises `ConfigurationError` without it."""
    group = app.conf.get("neli_group")
    if group is None:
        hint = not_read(app, "neli_group")
        example = "name this deployment, e.g. neli_group = 'shop-production'"
        raise ConfigurationError(
            f"neli_group is not set: {hint or f'{example}; two environments on one Kafka must differ'}"
        )
    _refuse_name("neli_group", group, most=GROUP_MOST)
    found: str = group
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """What a worker needs beside its `Config`: `leader_queue` has `{role}` in it."""

    leader_queue: str
    fence_kills: bool


def worker_settings(app: Celery) -> WorkerSettings:
    """From the app's settings. Loads its configuration. Raises `ConfigurationError`."""
    queue = app.conf.get("neli_leader_queue")
    if queue is None:
        queue = f"{_group(app)}.leader.{{role}}"
    if not isinstance(queue, str) or "{role}" not in queue:
        raise ConfigurationError(
            f"neli_leader_queue = {shown(queue)}: roles need a queue each; write {{role}} where their name shall stand"
        )
    return WorkerSettings(leader_queue=queue, fence_kills=_flag(app, "neli_fence_kills", default=False))
