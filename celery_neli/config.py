"""The configuration of a member, checked when it is made; the settings of an app (`settings.py` has the table), and the
scheduler classes that they name.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

from celery_neli.exceptions import ConfigurationError
from celery_neli.printable import Masked, closest, shown
from celery_neli.settings import NAME_MOST, SETTINGS, TOPIC_MOST, Setting, kafka_name

if TYPE_CHECKING:
    from celery import Celery

ELECTIONS: Final = ("beat", "worker")
# The election of the one process that watches for slots and runs that are overdue; beats and workers take part.
WATCH: Final = "watch"
# The ends of the names of the schedule topic and of the topic of the run history, behind that of the leader topic.
SCHEDULE: Final = ".schedule"
HISTORY: Final = ".history"
#: The settings of an app are parts of these names.
_WHOLE_NAMES: Mapping[str, Setting] = {
    "group": Setting("neli_group", kafka_name(NAME_MOST)),
    "topic": Setting("neli_topic", kafka_name(TOPIC_MOST)),
}

#: Properties with which a member could not work, by the reason.
_REFUSED: Mapping[str, tuple[str, ...]] = {
    "errors and log lines go to the logger celery_neli.kafka": ("error_cb", "logger", "log_cb"),
    "it would run on the thread that renews the lease": ("stats_cb", "throttle_cb", "on_delivery"),
    "nothing is ever committed": ("on_commit",),
    "all members would share it, and the group would fence all but one": ("group.instance.id",),
    "a member does not write in transactions": ("transactional.id",),
    "these clients have no serializers": ("key.serializer", "value.serializer"),
    "these clients have no deserializers": ("key.deserializer", "value.deserializer"),
}
#: The settings of ours that decide a required property.
_FOLLOWS_FROM: Mapping[str, str] = {
    "group.id": "neli_group",
    "session.timeout.ms": "neli_session_timeout",
    "delivery.timeout.ms": "neli_heartbeat_timeout",
}


#: What the election "watch" has in the place of the settings, which are for leaders that work waits for (seconds).
_OF_WATCH: Mapping[str, float] = {
    "heartbeat_interval": 1.5,
    "heartbeat_timeout": 5.0,
    "takeover_delay": 0.5,
    "drain_timeout": 1.0,
    "stall_timeout": 60.0,
}
#: librdkafka's properties with which its clients cost less than those of other elections, if the user gave none.
_OF_WATCH_CLIENTS: Mapping[str, Any] = {"fetch.wait.max.ms": 1_000, "topic.metadata.refresh.interval.ms": 10_000}


def _default_name() -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", f"{socket.gethostname()}_{os.getpid()}_{int(time.time())}")[-200:]


def _default(name: str) -> Any:
    return SETTINGS[name].default


@dataclass(frozen=True, kw_only=True, repr=False)
class Config:
    """The configuration of one member of one election. Times are seconds. `kafka` may hold secrets: `repr` and errors
    show only its names and addresses.

    Raises `ConfigurationError` if a value is unfit or contradicts another.
    """

    group: str
    kafka: Mapping[str, Any] | str = _default("neli_kafka")
    topic: str = ""
    roles: tuple[str, ...] = _default("neli_roles")
    name: str = field(default_factory=_default_name)
    heartbeat_interval: float = _default("neli_heartbeat_interval")
    heartbeat_timeout: float = _default("neli_heartbeat_timeout")
    session_timeout: float = _default("neli_session_timeout")
    takeover_delay: float = _default("neli_takeover_delay")
    drain_timeout: float = _default("neli_drain_timeout")
    stall_timeout: float = _default("neli_stall_timeout")
    rebalance_after: float = _default("neli_rebalance_after")

    def __post_init__(self) -> None:
        if not self.topic:
            object.__setattr__(self, "topic", f"{self.group}.neli")
        for each in fields(self):
            check = (_WHOLE_NAMES.get(each.name) or SETTINGS[f"neli_{each.name}"]).checked
            object.__setattr__(self, each.name, check(getattr(self, each.name)))
        if 3 * self.heartbeat_interval > self.heartbeat_timeout:
            raise ConfigurationError(
                f"neli_heartbeat_timeout = {self.heartbeat_timeout:g} s is less than 3 × neli_heartbeat_interval = "
                f"{self.heartbeat_interval:g} s: one late heartbeat would cost the leadership; "
                "raise the timeout or lower the interval"
            )
        if self.takeover_delay >= self.heartbeat_timeout:
            raise ConfigurationError(
                f"neli_takeover_delay = {self.takeover_delay:g} s is not below neli_heartbeat_timeout = "
                f"{self.heartbeat_timeout:g} s; lower it"
            )
        self._check_properties()

    def _check_properties(self) -> None:
        for reason, names in _REFUSED.items():
            for name in names:
                if self.properties.get(name) is not None:
                    raise ConfigurationError(f"neli_kafka must not contain {name}: {reason}.")
        for required in (required_of_readers(self), required_of_writers(self), required_of_members(self)):
            for name, ours in required.items():
                given = self.properties.get(name, ours)
                if _comparable(name, given) != _comparable(name, ours):
                    where = f" (it follows from {_FOLLOWS_FROM[name]})" if name in _FOLLOWS_FROM else ""
                    raise ConfigurationError(
                        f"neli_kafka has {name}={given!r}, but an election needs {name}={ours!r}{where}; remove it."
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
    def history_topic(self) -> str:
        """Name of the topic of the run history; that of the beat election is the only one."""
        return self.topic + HISTORY

    @property
    def properties(self) -> Mapping[str, Any]:
        """The librdkafka properties that the user gave, by their main names. They may hold secrets."""
        assert not isinstance(self.kafka, str)  # __post_init__ made it a mapping
        return self.kafka


def required_of_readers(config: Config) -> Mapping[str, Any]:
    """Return the librdkafka properties on which the safety of a consumer of the leader or schedule topic rests."""
    return {
        "group.id": config.group,  # it never joins: the client demands an id, and this one has the rights anyway
        "auto.offset.reset": "error",  # a position outside the log must raise, not be corrected silently (R9)
        "enable.partition.eof": True,  # a claim waits for the end of the log (R2)
        "isolation.level": "read_uncommitted",  # somebody's open transaction must not hold up the log
        "enable.auto.commit": False,
        "allow.auto.create.topics": False,
    }


def required_of_writers(config: Config) -> Mapping[str, Any]:
    """Return the librdkafka properties on which the safety of a producer to either topic rests."""
    return {
        "acks": "all",  # a record that only one broker has can be lost after it was read (R1)
        # A record older than the lease that it buys is useless, and a state must not be written long after its term.
        "delivery.timeout.ms": max(1, round(config.heartbeat_timeout * 1000)),
        # No idempotence: readers tolerate duplicate and late records, and without it a broker that stops cleanly
        # delays a record by 0.3 s instead of 1.2 s.
        "enable.idempotence": False,
        "max.in.flight.requests.per.connection": 1,
    }


def required_of_members(config: Config) -> Mapping[str, Any]:
    """Return the librdkafka properties on which the safety of a member of the consumer group rests."""
    return {
        "group.id": config.group,
        "group.protocol": "classic",  # KIP-848 leaves the session timeout to the broker: 45 s
        "partition.assignment.strategy": "cooperative-sticky",  # a join must not disturb the leader
        "session.timeout.ms": round(config.session_timeout * 1000),
        "enable.auto.commit": False,
        "allow.auto.create.topics": False,
    }


def _comparable(name: str, value: Any) -> str:
    text = str(value).strip().lower()
    return "all" if name == "acks" and text == "-1" else text


def setting(app: Celery, name: str) -> Any:
    """Return the app's value of the setting `name`, or its default. Loads the app's configuration. Raises
    `ConfigurationError` if the value is unfit.
    """
    value = app.conf.get(name)
    return SETTINGS[name].default if value is None else SETTINGS[name].checked(value)


def enabled(app: Celery) -> bool:
    """Return True if `neli_enabled` is on, as it is by default. Raises `ConfigurationError`."""
    return bool(setting(app, "neli_enabled"))


def from_app(app: Celery, election: str) -> Config:
    """Return the configuration of `election` ("beat", "worker" or "watch") from the app's settings, which it loads.
    Raises `ConfigurationError` if a setting is unfit, missing, or does not exist.
    """
    check_names(app)
    same = {each.name for each in fields(Config)} - {"group", "topic", "roles"}
    given = {name: value for name in same if (value := app.conf.get(f"neli_{name}")) is not None}
    if election == WATCH:
        roles: tuple[str, ...] = (WATCH,)
        properties = setting(app, "neli_kafka") if "kafka" in given else _properties_of_default()
        # Those that follow from the settings follow from other values here.
        kept = {name: value for name, value in properties.items() if name not in _FOLLOWS_FROM}
        given.update(_OF_WATCH, kafka={**_OF_WATCH_CLIENTS, **kept})
        given.pop("rebalance_after", None)
    else:
        roles = setting(app, "neli_roles") if election == "worker" else shard_roles(setting(app, "neli_shards"))
    return Config(
        group=f"{_group(app)}.{election}",
        topic=(setting(app, "neli_topic") or "").replace("{election}", election),
        roles=roles,
        **given,
    )


def _properties_of_default() -> Mapping[str, Any]:
    properties: Mapping[str, Any] = SETTINGS["neli_kafka"].checked(_default("neli_kafka"))
    return properties


def shard_roles(shards: int) -> tuple[str, ...]:
    """Return the roles of a beat election with so many shards. A role keeps its name and place when more are added."""
    return ("leader", *(f"leader-{index}" for index in range(1, shards)))


def owner(name: str, shards: int) -> int:
    """Return the shard (from 0) of the entry ``name`` where there are so many shards: linear hashing.

    One shard more splits one shard only. The hash is the same in every process and release.
    """
    if shards == 1:
        return 0
    size = 1 << (shards - 1).bit_length()
    shard = crc32(name.encode("utf-8", "surrogatepass")) & (size - 1)
    return shard if shard < shards else shard - size // 2


def parent(shard: int) -> int:
    """Return the shard that ``shard`` (above 0) is split from, which owned its entries before there were so many."""
    return shard & ~(1 << (shard.bit_length() - 1))


def _group(app: Celery) -> str:
    group: str | None = setting(app, "neli_group")
    if group is None:
        example = "name this deployment, e.g. neli_group = 'shop-production'; two environments on one Kafka must differ"
        raise ConfigurationError(f"neli_group is not set: {not_read(app, 'neli_group') or example}")
    return group


@dataclass(frozen=True, slots=True, kw_only=True)
class BeatSettings:
    """The settings of a beat beside its `Config`."""

    sends_in_doubt: bool  # it sends slots in doubt again
    parallel: int  # publishers
    version: int | None  # of its schedule, if it has one


def beat_settings(app: Celery) -> BeatSettings:
    """Return what a beat needs from the app's settings, which it loads. Raises `ConfigurationError`."""
    for name in ("neli_least_interval", "neli_calendars", "neli_entry_limit"):
        setting(app, name)
    return BeatSettings(
        sends_in_doubt=setting(app, "neli_in_doubt") == "send",
        parallel=setting(app, "neli_publish_parallel"),
        version=setting(app, "neli_schedule_version"),
    )


def leader_queue(app: Celery, role: str) -> str:
    """Return the name of the queue of this role's leader. Raises `ConfigurationError`."""
    template: str = setting(app, "neli_leader_queue") or f"{_group(app)}.leader.{{role}}"
    return template.replace("{role}", role)


_NAME = re.compile(r"(?:(?P<prefix>\w+)_)?(?P<name>neli_\w+)", re.IGNORECASE)


def check_names(app: Celery) -> None:
    """Check the names of the `neli_*` settings that the user gave, since Celery ignores unknown ones. Loads them.

    Raises `ConfigurationError` if a name does not exist, or if Celery would not read it: it is in the wrong case, or
    its prefix is not the app's namespace. In an app with a namespace, another prefix may be that of another app.
    """
    namespace = app.namespace or ""
    for key, prefix, name, is_read in _given(app):
        if is_read:
            if name not in SETTINGS:
                raise ConfigurationError(
                    f"{name} is not a setting of celery-neli; did you mean {closest(name, SETTINGS)}?"
                )
        elif prefix is None or prefix.lower() == namespace.lower() or (not namespace and name in SETTINGS):
            raise ConfigurationError(f"{key} is not read: {_remedy(app, prefix, name)}")


def not_read(app: Celery, name: str) -> str | None:
    """Return a hint if the app lacks the setting `name` and the user gave it with another prefix or in capitals."""
    for key, prefix, found, is_read in _given(app):
        if found == name and not is_read:
            return f"{key} is set, which this app does not read: {_remedy(app, prefix, name)}"
    return None


def _given(app: Celery) -> Iterator[tuple[str, str | None, str, bool]]:
    """Yield each key that looks like ours, its prefix, the setting's name in it, and True if Celery reads it."""
    for key in list(app.conf.keys()):
        if isinstance(key, str) and (found := _NAME.fullmatch(key)):
            name = found["name"].lower()
            yield key, found["prefix"], name, key in (name, _right(app, name))


def _right(app: Celery, name: str) -> str:
    """Return how the user has to write the setting `name`."""
    namespace = app.namespace or ""
    full = f"{namespace}_{name}" if namespace else name
    return full.upper() if namespace.isupper() else full


def _remedy(app: Celery, prefix: str | None, name: str) -> str:
    if prefix and not app.namespace:
        return f"this app has no namespace: write {name}, or app.config_from_object(..., namespace={prefix!r})"
    return f"write {_right(app, name)}"


# The scheduler classes that beats and `neli_scheduler` name. Their bases tell what they are, so nothing is imported.

DEFAULT_SCHEDULER: Final[str] = SETTINGS["neli_scheduler"].default
_REMEDY = f"give a class or its path, such as {DEFAULT_SCHEDULER!r}, or leave it out"
#: The schedulers that a misspelt name may have meant.
_SCHEDULERS = (
    DEFAULT_SCHEDULER,
    "celery.beat.Scheduler",
    "celery.beat.PersistentScheduler",
    "django_celery_beat.schedulers:DatabaseScheduler",
    "redbeat.RedBeatScheduler",
)


def scheduler_named(name: Any) -> Any:
    """Return what ``name`` stands for: a dotted path, an alias (entry point), or the class itself. Raises what its
    import raises, and `AttributeError` or `ValueError` if there is no such name.
    """
    from celery.utils.imports import load_extension_class_names, symbol_by_name  # an election needs no Celery

    return symbol_by_name(name, aliases=dict(load_extension_class_names("celery.beat_schedulers")))


def scheduler_class(name: Any) -> type[Any]:
    """Return the scheduler class that the setting `neli_scheduler` names; None: the default. Imports it. Raises
    `ConfigurationError` if it is no scheduler, or `celery_neli.Scheduler` itself.
    """
    try:
        cls = scheduler_named(DEFAULT_SCHEDULER if name is None else name)
    except Exception as exc:  # the import runs the user's modules
        near = closest(str(name), _SCHEDULERS, least=0.8)
        hint = _REMEDY if near in (None, name) else f"did you mean {near!r}?"
        raise ConfigurationError(f"neli_scheduler = {shown(name)} cannot be imported: {shown(exc)}; {hint}") from exc
    if not (isinstance(cls, type) and derives_from(cls, "celery.beat", "Scheduler")):
        remedy = f"is django-celery-beat installed? Otherwise {_REMEDY}" if name == "django" else _REMEDY
        raise ConfigurationError(f"neli_scheduler = {shown(name)} is not a subclass of celery.beat.Scheduler; {remedy}")
    if is_elected(cls):
        raise ConfigurationError(
            f"neli_scheduler = {shown(name)} is celery-neli's own scheduler: name the one that it is to lead, such as"
            f" 'celery.beat.Scheduler' (beat_scheduler is the setting for celery-neli's)"
        )
    return cls


def is_elected(cls: type[Any]) -> bool:
    """Return True if ``cls`` is `celery_neli.Scheduler` or derives from it."""
    return derives_from(cls, "celery_neli.beat.scheduler", "Scheduler")


def is_replicated(cls: type[Any]) -> bool:
    """Return True if ``cls`` is `celery_neli.ReplicatedScheduler` or derives from it."""
    return derives_from(cls, "celery_neli.beat.replicated.standalone", "ReplicatedScheduler")


def derives_from(cls: type[Any], module: str, name: str) -> bool:
    """Return True if ``module.name`` is ``cls`` or among its bases. Imports nothing."""
    return any(base.__module__ == module and base.__name__ == name for base in cls.__mro__)
