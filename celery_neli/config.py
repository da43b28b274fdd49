"""Every setting: its name, default, unit and check. The README's table is made from here (`python -m
celery_neli.config`).
"""

from __future__ import annotations

import difflib
import math
import os
import re
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from celery_neli.exceptions import ConfigurationError
from celery_neli.records import MAX_LEASE

if TYPE_CHECKING:
    from celery import Celery

_KAFKA_NAME = re.compile(r"[A-Za-z0-9._-]{1,249}")
_ROLE = re.compile(r"[A-Za-z0-9._-]{1,100}")
_PUBLIC = ("bootstrap.servers", "client.id", "security.protocol", "sasl.mechanism", "sasl.mechanisms")
_SCHEMES = ("plaintext", "ssl", "sasl_plaintext", "sasl_ssl")  # librdkafka's own; others it calls unreachable
ELECTIONS = ("beat", "worker")
STALL_LEAST = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One `neli_*` setting as users see it."""

    name: str
    default: str
    meaning: str


SETTINGS: tuple[Setting, ...] = (
    Setting(
        name="neli_group",
        default="required",
        meaning="names the deployment: the consumer groups are `<group>.beat` and `<group>.worker`. "
        "Two environments on one Kafka must differ",
    ),
    Setting(
        name="neli_kafka",
        default="`localhost:9092`",
        meaning="bootstrap servers, or a dict of librdkafka properties (TLS, SASL, …) for all clients",
    ),
    Setting(
        name="neli_topic",
        default="`<group>.<election>.neli`",
        meaning="leader topic; `{election}` in it stands for `beat` or `worker`",
    ),
    Setting(name="neli_name", default="`<host>_<pid>_<time>`", meaning="this process's name in logs and status"),
    Setting(name="neli_heartbeat_interval", default="0.5 s", meaning="between two heartbeats of a leader"),
    Setting(
        name="neli_heartbeat_timeout",
        default="4 s",
        meaning="the lease that a heartbeat buys; the hand-over after a crash takes this plus a few tenths of a second",
    ),
    Setting(
        name="neli_session_timeout",
        default="6 s",
        meaning="session of the consumer group (the brokers' default minimum is 6 s)",
    ),
    Setting(
        name="neli_takeover_delay",
        default="0.1 s",
        meaning="head start of the member to which the group has assigned the role",
    ),
    Setting(name="neli_drain_timeout", default="10 s", meaning="how long a barrier may hold up a hand-over"),
    Setting(
        name="neli_stall_timeout",
        default="60 s",
        meaning="a leader that makes no progress for so long (or, a worker, has no task broker) logs a stack and "
        "resigns",
    ),
    Setting(
        name="neli_scheduler",
        default="`celery.beat.Scheduler`",
        meaning="the scheduler that the leading beat runs: a class, a path or an alias",
    ),
    Setting(
        name="neli_misfire",
        default='`"fire_once"`',
        meaning="what becomes of slots that were missed, however many: `fire_once` runs one, `fire_all` each (oldest "
        "first), `skip` none that is later than its grace. An entry may have its own, in its `options`",
    ),
    Setting(name="neli_misfire_max", default="100", meaning="how many missed slots of an entry `fire_all` runs"),
    Setting(
        name="neli_misfire_grace",
        default="none; with `skip` 60 s",
        meaning="how late a slot may run; a later one is left out, and logged",
    ),
    Setting(
        name="neli_roles",
        default='`["leader"]`',
        meaning="what workers may lead, each role apart: its name is its place in this list, so append only",
    ),
    Setting(
        name="neli_rebalance_after",
        default="30 s",
        meaning="with several roles: how long the group's assignment and a leader must have been stable before the "
        "worker to which the group has assigned the role asks for it",
    ),
    Setting(
        name="neli_leader_queue",
        default="`<group>.leader.<role>`",
        meaning="queue of the tasks that only the leader of a role runs; `{role}` in it stands for the role",
    ),
    Setting(
        name="neli_fence_kills",
        default="`False`",
        meaning="terminate the prefork children that run leader-only tasks when the leader is fenced",
    ),
    Setting(
        name="neli_enabled",
        default="`True`",
        meaning="off: an ordinary beat and worker, without Kafka (tests, development)",
    ),
)

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
            value = getattr(self, name)
            if not isinstance(value, str) or not _KAFKA_NAME.fullmatch(value) or value in (".", ".."):
                raise ConfigurationError(
                    f"neli_{name} = {value!r}: use 1 to 249 of the characters that Kafka allows in names: "
                    "A-Z a-z 0-9 . _ -"
                )
        if not self.roles or len(set(self.roles)) != len(self.roles) or not all(map(_is_role, self.roles)):
            raise ConfigurationError(
                f"neli_roles = {self.roles!r}: give one or more names, each once, "
                "of at most 100 of the characters A-Z a-z 0-9 . _ -"
            )
        self._compare()
        from celery_neli.clients import check  # it needs a configuration to begin with

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
        if self.stall_timeout < STALL_LEAST:
            raise ConfigurationError(
                f"neli_stall_timeout = {self.stall_timeout:g} s is below {STALL_LEAST:g} s; raise it"
            )

    def __repr__(self) -> str:
        shown = {each.name: getattr(self, each.name) for each in fields(self)}
        shown["kafka"] = {key: value if key in _PUBLIC else "***" for key, value in self.properties.items()}
        return f"Config({', '.join(f'{key}={value!r}' for key, value in shown.items())})"

    @property
    def properties(self) -> Mapping[str, Any]:
        """The librdkafka properties that the user gave. May hold secrets."""
        assert not isinstance(self.kafka, str)  # __post_init__ made it a mapping
        return self.kafka


def _roles(value: Any) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ConfigurationError(f"neli_roles = {value!r}: give a list of names")
    return tuple(value)


def _is_role(value: Any) -> bool:
    return isinstance(value, str) and _ROLE.fullmatch(value) is not None


def _seconds(name: str, value: Any) -> float:
    least = 0.0 if name in ("takeover_delay", "drain_timeout") else 0.001
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < least:
        raise ConfigurationError(f"neli_{name} = {value!r}: give a number of seconds, at least {least:g}")
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
    for server in servers.split(","):
        scheme, found, _ = server.strip().partition("://")
        if found and scheme.lower() not in _SCHEMES:
            raise ConfigurationError(
                f"neli_kafka has the server {server.strip()!r}: give host:port, without {scheme}://"
            )
    return MappingProxyType(
        {**{k: v for k, v in value.items() if k != "metadata.broker.list"}, "bootstrap.servers": servers}
    )


def enabled(app: Celery) -> bool:
    """Whether `neli_enabled` is on (the default)."""
    value = app.conf.get("neli_enabled", True)
    if not isinstance(value, bool):
        raise ConfigurationError(f"neli_enabled = {value!r}: give True or False")
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
                f"neli_topic = {topic!r}: beats and workers need a topic each; "
                "write {election} where their name shall stand"
            )
        given["topic"] = topic.replace("{election}", election)
    if election == "worker" and app.conf.get("neli_roles") is not None:
        given["roles"] = app.conf.neli_roles
    return Config(**given)


def _group(app: Celery) -> str:
    """The setting `neli_group`. Raises `ConfigurationError` without it."""
    group = app.conf.get("neli_group")
    if not group:
        raise ConfigurationError(
            "neli_group is not set: name this deployment, e.g. neli_group = 'shop-production'; "
            "two environments on one Kafka must differ"
        )
    if not isinstance(group, str):
        raise ConfigurationError(f"neli_group = {group!r}: give a string")
    return group


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """What a worker needs beside its `Config`: `leader_queue` has `{role}` in it."""

    leader_queue: str
    fence_kills: bool


def worker_settings(app: Celery) -> WorkerSettings:
    """From the app's settings. Loads its configuration. Raises `ConfigurationError`."""
    queue = app.conf.get("neli_leader_queue") or f"{_group(app)}.leader.{{role}}"
    if not isinstance(queue, str) or "{role}" not in queue:
        raise ConfigurationError(
            f"neli_leader_queue = {queue!r}: roles need a queue each; write {{role}} where their name shall stand"
        )
    kills = app.conf.get("neli_fence_kills", False)
    if not isinstance(kills, bool):
        raise ConfigurationError(f"neli_fence_kills = {kills!r}: give True or False")
    return WorkerSettings(leader_queue=queue, fence_kills=kills)


def _neli_keys(app: Celery) -> Iterable[str]:
    """The `neli_*` settings that the user gave, whatever the namespace and the case."""
    prefix = (getattr(app, "namespace", None) or "").lower()
    prefix = f"{prefix}_" if prefix else ""
    for key in list(app.conf.keys()):
        if isinstance(key, str):
            lower = key.lower()
            if key.startswith("NELI_"):
                raise ConfigurationError(f"{key} is not read: write {lower} (or, in a namespace, with its prefix)")
            lower = lower[len(prefix) :] if prefix and lower.startswith(prefix) else lower
            if lower.startswith("neli_"):
                yield lower


def check_names(app: Celery) -> None:
    """Raise `ConfigurationError` for a `neli_*` setting of the app that does not exist. Loads its configuration."""
    refuse_unknown(_neli_keys(app))


def refuse_unknown(names: Iterable[str]) -> None:
    """Raise `ConfigurationError` for a name that is no setting, with the nearest one: Celery itself would pass it in
    silence.
    """
    known = [setting.name for setting in SETTINGS]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise ConfigurationError(f"{name} is no setting of celery-neli; did you mean {near}?")


def table() -> str:
    """The settings as a Markdown table."""
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    rows += [f"| `{each.name}` | {each.default} | {each.meaning} |" for each in SETTINGS]
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
