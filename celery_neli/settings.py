"""Every setting, once: its name, check, unit, default and meaning.

`python -m celery_neli.settings` prints the page `docs/settings.md`; `config.py` reads the settings of an app.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from celery_neli.exceptions import ConfigurationError
from celery_neli.printable import Masked, shown

MAX_LEASE: Final = 300  # seconds for which one record can make other members wait
NAME_MOST: Final = 249  # characters of a name in Kafka
TOPIC_MOST: Final = NAME_MOST - len(".schedule")
GROUP_MOST: Final = TOPIC_MOST - len(".worker.neli")
SESSION_MOST: Final = 3_600  # seconds: librdkafka's limit for the session of a group; brokers have 1800 s by default
PORT_MOST: Final = 65_535
SECONDS_MOST: Final = 1_000_000_000  # a wait of Python's threads must not be much longer
SHARDS_MOST: Final = 256
VERSION_MOST: Final = 1 << 53
ENTRIES_MOST: Final = 1_000_000_000
MISFIRE_POLICIES: Final = ("fire_once", "fire_all", "skip")
OVERLAP_POLICIES: Final = ("allow", "skip", "queue_one", "cancel_other")
MOST_FAILURES: Final = 100  # that `neli_pause_on_failure` may wait for

_KAFKA_NAME = re.compile(r"(?!\.\.?$)[A-Za-z0-9._-]+")
_CALENDAR = re.compile(r"[A-Za-z0-9._-]{1,100}")
_ROLE = re.compile(r"[A-Za-z0-9._-]{1,100}")
_SCHEMES = ("plaintext", "ssl", "sasl_plaintext", "sasl_ssl")  # librdkafka takes any other for an unreachable server
#: Second names of librdkafka's properties (its CONFIGURATION.md), and the main ones.
_ALIASES: Mapping[str, str] = {
    "metadata.broker.list": "bootstrap.servers",
    "request.required.acks": "acks",
    "message.timeout.ms": "delivery.timeout.ms",
    "max.in.flight": "max.in.flight.requests.per.connection",
    "queue.buffering.max.ms": "linger.ms",
}


@dataclass(frozen=True, slots=True)
class Check:
    """A condition on a value. `remedy` is the part of the error that says what to give instead."""

    fits: Callable[[Any], bool]
    remedy: str
    convert: Callable[[Any], Any] | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """One `neli_*` setting; `documented` is its default in the documentation, if that is not the plain value."""

    name: str
    check: Check
    default: Any = None
    documented: str = ""

    def checked(self, value: Any) -> Any:
        """Return the value in the form that the package uses. Raises `ConfigurationError`, which says what to give."""
        if not self.check.fits(value):
            raise ConfigurationError(f"{self.name} = {shown(value)}: {self.check.remedy}")
        return value if self.check.convert is None else self.check.convert(value)

    def row(self, meaning: str) -> str:
        """Return the setting as a row of the documentation's table. A default that is a float is in seconds."""
        default = f"{self.default:g} s" if isinstance(self.default, float) else f"`{self.default!r}`"
        return f"| `{self.name}` | {self.documented or default} | {meaning} |"


def _is_number(value: Any, kind: type | tuple[type, ...] = (int, float)) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _seconds(least: float, most: float = SECONDS_MOST) -> Check:
    return Check(
        lambda value: _is_number(value) and least <= value <= most,
        f"give a number of seconds from {least:g} to {most}",
        convert=float,
    )


def _whole(least: int, most: int) -> Check:
    return Check(
        lambda value: _is_number(value, int) and least <= value <= most, f"give a whole number from {least} to {most}"
    )


def _one_of(*choices: str) -> Check:
    return Check(lambda value: isinstance(value, str) and value in choices, f"give one of {', '.join(choices)}")


def _is_address(value: Any) -> bool:
    host, found, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    return bool(host and found) and port.isascii() and port.isdigit() and int(port) <= PORT_MOST


def _template(placeholder: str, reason: str) -> Check:
    return Check(
        lambda value: isinstance(value, str) and placeholder in value,
        f"{reason}; write {placeholder} where their name shall stand",
    )


def kafka_name(most: int) -> Check:
    """Return the check of a name of at most `most` characters for a topic or a group."""
    return Check(
        lambda value: isinstance(value, str) and len(value) <= most and _KAFKA_NAME.fullmatch(value) is not None,
        f"use 1 to {most} of the characters that Kafka allows in names: A-Z a-z 0-9 . _ -",
    )


def _is_entry_limit(value: Any) -> bool:
    limits = value if isinstance(value, Mapping) else {"": value}
    return bool(limits) and all(
        isinstance(prefix, str) and _is_number(each, int) and 0 <= each <= ENTRIES_MOST
        for prefix, each in limits.items()
    )


def _are_roles(value: Any) -> bool:
    if not isinstance(value, (list, tuple)) or not value:  # other collections have no order, or none that lasts
        return False
    return all(isinstance(each, str) and _ROLE.fullmatch(each) for each in value) and len(set(value)) == len(value)


def _properties(value: Any) -> Mapping[str, Any]:
    """Return the librdkafka properties by their main names. They may hold secrets, so no error shows their values."""
    if isinstance(value, str):
        value = {"bootstrap.servers": value}
    elif isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value):
        value = {"bootstrap.servers": ",".join(value)}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigurationError(
            f"neli_kafka is a {type(value).__name__}: give the bootstrap servers as 'host:port,host:port', "
            "or a dict of librdkafka properties"
        )
    properties = Masked({_ALIASES.get(name, name): each for name, each in value.items()})
    servers = properties.get("bootstrap.servers")
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
    return MappingProxyType(properties)


_ADDRESS = Check(
    lambda value: (
        (
            isinstance(value, Mapping)
            and value
            and set(value) <= {"beat", "worker"}
            and all(map(_is_address, value.values()))
        )
        or _is_address(value)
    ),
    "give host:port, such as '127.0.0.1:9808', or a dict with such an address for 'beat' and for 'worker'",
)
_CALENDARS = Check(
    lambda value: (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) and _CALENDAR.fullmatch(name) for name in value)
        and all((isinstance(each, str) and each) or callable(each) for each in value.values())
    ),
    "give a dict of functions, or of their paths, by names of 1 to 100 of the characters A-Z a-z 0-9 . _ -",
)
_FLAG = Check(lambda value: isinstance(value, bool), "give True or False")
_GRACE = Check(
    lambda value: _is_number(value) and 0 < value <= SECONDS_MOST, "give a number of seconds above 0, or None"
)
_ANYTHING = Check(lambda _: True, "")
_URL = Check(
    lambda value: isinstance(value, str) and value.startswith(("http://", "https://")),
    "give an address that begins with https:// or http://",
)
_SLUG_URL = Check(
    lambda value: _URL.fits(value) and "{slug}" in value,
    "give an address that begins with https:// or http:// and has {slug} where the entry's name shall stand",
)
_DIRECTORY = Check(
    lambda value: isinstance(value, str) and (not value or value.isprintable()),
    "give the path of a directory, or an empty text for none",
)
_ROLES = Check(
    _are_roles,
    "give a list of one or more names, each once, of at most 100 of the characters A-Z a-z 0-9 . _ -",
    convert=tuple,
)

_BY_SUBJECT: Mapping[str, Mapping[Setting, str]] = {
    "The election": {
        Setting("neli_group", kafka_name(GROUP_MOST), documented="required"): (
            "names the deployment; the consumer groups are `<group>.beat` and `<group>.worker`. Give every app and "
            "every environment its own: beats that share one compete, and only the winner's schedule runs"
        ),
        Setting("neli_kafka", replace(_ANYTHING, convert=_properties), default="localhost:9092"): (
            "Kafka's bootstrap servers, or a dict of librdkafka properties (TLS, SASL, …) for all clients"
        ),
        Setting(
            "neli_topic",
            _template("{election}", "beats and workers need a topic each"),
            documented="`<group>.<election>.neli`",
        ): ("the leader topic; `{election}` in it stands for `beat`, `worker` or `watch`"),
        Setting("neli_name", kafka_name(NAME_MOST), documented="`<host>_<pid>_<time>`"): (
            "this process's name in logs and in `neli status`; must differ between processes"
        ),
        Setting("neli_heartbeat_interval", _seconds(0.001), default=0.5): "time between two heartbeats of a leader",
        Setting("neli_heartbeat_timeout", _seconds(0.001, MAX_LEASE), default=4.0): (
            "the lease that a heartbeat buys. After a crash, a successor leads after this and a few tenths of a second"
        ),
        Setting("neli_session_timeout", _seconds(1, SESSION_MOST), default=6.0): (
            "session timeout of the consumer group (the brokers' default minimum is 6 s)"
        ),
        Setting("neli_takeover_delay", _seconds(0), default=0.1): (
            "how long other members wait before claiming a vacant role, so that the member to which the consumer "
            "group has assigned the role goes first"
        ),
        Setting("neli_drain_timeout", _seconds(0), default=10.0): "maximum time a handover waits for running work",
        Setting("neli_stall_timeout", _seconds(1), default=60.0): (
            "a leader that makes no progress for this long (or, a worker, has no task broker) logs a stack and resigns"
        ),
        Setting("neli_enabled", _FLAG, default=True): (
            "`False` makes an ordinary beat and worker, without Kafka, for tests and development"
        ),
    },
    "The schedule": {
        Setting("neli_scheduler", _ANYTHING, default="celery_neli.ReplicatedScheduler"): (
            "the scheduler that the leading beat runs: a class, a path or an alias. The default keeps the state of "
            "the schedule in Kafka; any other keeps it where it always does"
        ),
        Setting("neli_misfire", _one_of(*MISFIRE_POLICIES), default="fire_once"): (
            "what happens to missed slots: `fire_once` runs one for all of them, `fire_all` runs each (oldest first), "
            "`skip` runs none that is later than its grace. An entry may have its own in its `options`"
        ),
        Setting("neli_misfire_max", _whole(1, 100_000), default=100): (
            "how many missed slots of an entry `fire_all` runs"
        ),
        Setting("neli_misfire_grace", _GRACE, documented="none; with `skip` 60 s"): (
            "how late a slot may run; a later one is left out and logged"
        ),
        Setting("neli_in_doubt", _one_of("send", "skip"), default="send"): (
            "what happens to slots that a crashed leader may or may not have sent: `send` sends them again with the "
            "same task id, `skip` leaves them out and logs each"
        ),
        Setting(
            "neli_entry_limit",
            Check(
                _is_entry_limit,
                f"give a whole number from 0 to {ENTRIES_MOST}, or a dict of prefixes of names to such numbers",
            ),
            documented="none",
        ): (
            "how many [runtime entries](schedule.md#tenants) there may be: a number for all, or a dict from prefixes "
            "of names to numbers, of which the longest prefix counts"
        ),
        Setting("neli_least_interval", _seconds(0.001), default=1.0): (
            "the shortest interval that an entry defined at runtime may have; one in `beat_schedule` may be shorter"
        ),
        Setting("neli_calendars", _CALENDARS, documented="none"): (
            "the calendars of the application, by name, each a function (or the path of one) that takes a date and says"
            " whether it is in the calendar: entries name one of them as their [`neli_calendar`]"
            "(schedule.md#calendars-neli_calendar)"
        ),
        Setting("neli_publish_parallel", _whole(1, 64), default=1): (
            "how many connections to the task broker a beat uses while many entries are due (1 to 64). More help "
            "where the broker takes its time to answer: RabbitMQ with `confirm_publish`, another data centre"
        ),
        Setting("neli_schedule_version", _whole(0, VERSION_MOST)): (
            "a whole number that you raise with each version of `beat_schedule`: the leader makes way for a beat with "
            "a higher one"
        ),
    },
    "Several leading beats": {
        Setting("neli_shards", _whole(1, SHARDS_MOST), default=1): (
            "how many roles the beat election has (1 to 256). Entries are spread over them by name, and that many "
            "beats can send side by side. May be raised; to lower it, stop all beats and run `celery neli repair`"
        ),
    },
    "Workers": {
        Setting("neli_roles", _ROLES, default=("leader",)): (
            "the roles that workers may lead, each led separately. A role is its place in this list, so only append"
        ),
        Setting("neli_rebalance_after", _seconds(0.001), default=30.0): (
            "with several roles: how long the consumer group's assignment and the leader must have been stable before "
            "the worker to which the group has assigned a role asks for it"
        ),
        Setting(
            "neli_leader_queue", _template("{role}", "roles need a queue each"), documented="`<group>.leader.<role>`"
        ): ("the queue of the tasks that only the leader of a role runs; `{role}` in it stands for the role"),
        Setting("neli_fence_kills", _FLAG, default=False): (
            "whether the prefork children that run leader-only tasks are terminated when the leader is fenced"
        ),
    },
    "Seeing what happens": {
        Setting("neli_history", _FLAG, default=True): (
            "whether beats and workers record what became of each slot and what its task did, in the topic "
            "`<leader topic>.history`"
        ),
        Setting("neli_history_retention", _seconds(60), default=1_209_600.0, documented="14 days"): (
            "how long the run history is kept; applies when the topic is made"
        ),
        Setting("neli_overdue", _GRACE, default=60.0, documented="60 s + 10 % of the interval"): (
            "how long after its slot an entry's task may be missing before an [alarm](alarms.md) is raised; an entry "
            "may have its own in its `options`"
        ),
        Setting("neli_max_runtime", _GRACE, documented="none"): (
            "how long a task that an entry sent may run before an alarm is raised; an entry may have its own in its "
            "`options`"
        ),
        Setting("neli_alarms", _FLAG, default=True): (
            "whether this process takes part in watching for slots and runs that are overdue. Entries that are to be "
            "paused after failures (`neli_pause_on_failure`) are watched in any case"
        ),
        Setting("neli_sentry_crons", _FLAG, default=False): (
            "whether each slot is a check-in of Sentry Crons (extra `sentry`; the application calls `sentry_sdk.init`)"
        ),
        Setting("neli_healthchecks", _SLUG_URL, documented="none"): (
            "the ping URL of [healthchecks](alarms.md#healthchecks), with `{slug}` in it for the entry's name as a "
            "slug (extra `http`)"
        ),
        Setting(
            "neli_webhook", _URL, documented="none"
        ): "an address to which each alarm is posted as JSON (extra `http`)",
        Setting("neli_metrics_entries", _whole(0, 100_000), default=200): (
            "for how many entries metrics have a series of their own; further ones are counted together"
        ),
        Setting("neli_http", _ADDRESS, documented="none"): (
            "the address, as `host:port`, on which a beat or worker answers `/livez`, `/readyz`, `/leader` and "
            "`/metrics`; or a dict with an address for `beat` and one for `worker`"
        ),
        Setting("neli_health_dir", _DIRECTORY, documented="the directory for temporary files"): (
            "where each process notes every two seconds that it is well, for `celery neli health`: in the directory "
            "`celery-neli-<uid>` in it, which it makes; an empty text for nowhere"
        ),
    },
}

#: The names of the settings of what is not needed to run: they are checked together.
OBSERVABILITY: Final = tuple(each.name for each in _BY_SUBJECT["Seeing what happens"])
SETTINGS: Final[Mapping[str, Setting]] = {each.name: each for table in _BY_SUBJECT.values() for each in table}


_HEAD = """\
# Settings

Set these in Celery's configuration, in lower case. Under a namespace such as Django's, write `CELERY_NELI_…`. Times \
are in seconds.

A misspelt `neli_*` setting is refused, with the nearest name, where an election or a leader queue is used: in beats \
and workers, by `celery neli`, and when a `@leader_only` task is called. This page is the output of `python -m \
celery_neli.settings`.

An entry may have options of its own, in its `options`: `neli_misfire`, `neli_misfire_max` and `neli_misfire_grace` \
([missed slots](schedule.md#missed-slots-the-misfire-policy)), `neli_expires` \
([tasks not worth running late](schedule.md#tasks-that-are-not-worth-running-late-neli_expires)), and `neli_overlap` \
and `neli_overlap_age` \
([tasks that outlast their interval](schedule.md#tasks-that-outlast-their-interval-the-overlap-policy)), \
`neli_timezone`, `neli_start`, `neli_end`, `neli_max_runs`, `neli_calendar`, `neli_jitter` and `neli_tags` \
([when an entry runs](schedule.md#when-an-entry-runs-time-zone-start-end-calendar-jitter)), \
`neli_overdue` and `neli_max_runtime` ([alarms](alarms.md)), and `neli_pause_on_failure` \
([entries that keep failing](schedule.md#entries-that-keep-failing-neli_pause_on_failure))."""


def page() -> str:
    """Return the settings as the Markdown page `docs/settings.md`, by subject."""
    lines = [_HEAD]
    for subject, settings in _BY_SUBJECT.items():
        lines += ["", f"## {subject}", "", "| setting | default | meaning |", "|---|---|---|"]
        lines += [each.row(meaning) for each, meaning in settings.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    print(page())
