"""Every setting: its name, default, unit and meaning. `docs/settings.md` is made from here (`python -m
celery_neli.settings`); `config.py` checks the values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from celery_neli.exceptions import ConfigurationError
from celery_neli.nearest import nearest

if TYPE_CHECKING:
    from celery import Celery


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One `neli_*` setting as users see it. `subject` is the heading under which the documentation lists it."""

    name: str
    subject: str
    default: str
    meaning: str


_ELECTION, _SCHEDULE, _SHARDS, _WORKERS = "The election", "The schedule", "Several leading beats", "Workers"

SETTINGS: tuple[Setting, ...] = (
    Setting(
        name="neli_group",
        subject=_ELECTION,
        default="required",
        meaning="names the deployment; the consumer groups are `<group>.beat` and `<group>.worker`. Give every app and "
        "every environment its own: beats that share one compete, and only the winner's schedule runs",
    ),
    Setting(
        name="neli_kafka",
        subject=_ELECTION,
        default="`localhost:9092`",
        meaning="Kafka's bootstrap servers, or a dict of librdkafka properties (TLS, SASL, …) for all clients",
    ),
    Setting(
        name="neli_topic",
        subject=_ELECTION,
        default="`<group>.<election>.neli`",
        meaning="the leader topic; `{election}` in it stands for `beat` or `worker`",
    ),
    Setting(
        name="neli_name",
        subject=_ELECTION,
        default="`<host>_<pid>_<time>`",
        meaning="this process's name in logs and in `neli status`; must differ between processes",
    ),
    Setting(
        name="neli_heartbeat_interval",
        subject=_ELECTION,
        default="0.5 s",
        meaning="time between two heartbeats of a leader",
    ),
    Setting(
        name="neli_heartbeat_timeout",
        subject=_ELECTION,
        default="4 s",
        meaning="the lease that a heartbeat buys. After a crash, a successor leads after this and a few tenths of a "
        "second",
    ),
    Setting(
        name="neli_session_timeout",
        subject=_ELECTION,
        default="6 s",
        meaning="session timeout of the consumer group (the brokers' default minimum is 6 s)",
    ),
    Setting(
        name="neli_takeover_delay",
        subject=_ELECTION,
        default="0.1 s",
        meaning="how long other members wait before claiming a vacant role, so that the member to which the consumer "
        "group has assigned the role goes first",
    ),
    Setting(
        name="neli_drain_timeout",
        subject=_ELECTION,
        default="10 s",
        meaning="maximum time a handover waits for running work",
    ),
    Setting(
        name="neli_stall_timeout",
        subject=_ELECTION,
        default="60 s",
        meaning="a leader that makes no progress for this long (or, a worker, has no task broker) logs a stack and "
        "resigns",
    ),
    Setting(
        name="neli_enabled",
        subject=_ELECTION,
        default="`True`",
        meaning="`False` makes an ordinary beat and worker, without Kafka, for tests and development",
    ),
    Setting(
        name="neli_scheduler",
        subject=_SCHEDULE,
        default="`celery_neli.ReplicatedScheduler`",
        meaning="the scheduler that the leading beat runs: a class, a path or an alias. The default keeps the state of "
        "the schedule in Kafka; any other keeps it where it always does",
    ),
    Setting(
        name="neli_misfire",
        subject=_SCHEDULE,
        default='`"fire_once"`',
        meaning="what happens to missed slots: `fire_once` runs one for all of them, `fire_all` runs each (oldest "
        "first), `skip` runs none that is later than its grace. An entry may have its own in its `options`",
    ),
    Setting(
        name="neli_misfire_max",
        subject=_SCHEDULE,
        default="100",
        meaning="how many missed slots of an entry `fire_all` runs",
    ),
    Setting(
        name="neli_misfire_grace",
        subject=_SCHEDULE,
        default="none; with `skip` 60 s",
        meaning="how late a slot may run; a later one is left out and logged",
    ),
    Setting(
        name="neli_in_doubt",
        subject=_SCHEDULE,
        default='`"send"`',
        meaning="what happens to slots that a crashed leader may or may not have sent: `send` sends them again with "
        "the same task id, `skip` leaves them out and logs each",
    ),
    Setting(
        name="neli_least_interval",
        subject=_SCHEDULE,
        default="1 s",
        meaning="the shortest interval that an entry defined at runtime may have; one in `beat_schedule` may be "
        "shorter",
    ),
    Setting(
        name="neli_publish_parallel",
        subject=_SCHEDULE,
        default="1",
        meaning="how many connections to the task broker a beat uses while many entries are due (1 to 64). More help "
        "where the broker takes its time to answer: RabbitMQ with `confirm_publish`, another data centre",
    ),
    Setting(
        name="neli_schedule_version",
        subject=_SCHEDULE,
        default="none",
        meaning="a whole number that you raise with each version of `beat_schedule`: the leader makes way for a beat "
        "with a higher one",
    ),
    Setting(
        name="neli_shards",
        subject=_SHARDS,
        default="1",
        meaning="how many roles the beat election has (1 to 256). Entries are spread over them by name, and that many "
        "beats can send side by side. May be raised; to lower it, stop all beats and run `celery neli repair`",
    ),
    Setting(
        name="neli_roles",
        subject=_WORKERS,
        default='`["leader"]`',
        meaning="the roles that workers may lead, each led separately. A role is its place in this list, so only "
        "append",
    ),
    Setting(
        name="neli_rebalance_after",
        subject=_WORKERS,
        default="30 s",
        meaning="with several roles: how long the consumer group's assignment and the leader must have been stable "
        "before the worker to which the group has assigned a role asks for it",
    ),
    Setting(
        name="neli_leader_queue",
        subject=_WORKERS,
        default="`<group>.leader.<role>`",
        meaning="the queue of the tasks that only the leader of a role runs; `{role}` in it stands for the role",
    ),
    Setting(
        name="neli_fence_kills",
        subject=_WORKERS,
        default="`False`",
        meaning="whether the prefork children that run leader-only tasks are terminated when the leader is fenced",
    ),
)


_NAME = re.compile(r"(?:(?P<prefix>\w+)_)?(?P<name>neli_\w+)", re.IGNORECASE)


def _neli_keys(app: Celery) -> Iterable[str]:
    """Yield the `neli_*` settings that the user gave, in lower case and without the namespace.

    Raises `ConfigurationError` for one that Celery would never read under the name that it has: in the wrong case, or
    with a prefix that is not the app's namespace. A prefix of its own may be another app's namespace, so beside a
    namespace only `not_read` tells.
    """
    namespace = getattr(app, "namespace", None) or ""
    for key in list(app.conf.keys()):
        found = _NAME.fullmatch(key) if isinstance(key, str) else None
        if found is None:
            continue
        name, prefix = found["name"].lower(), found["prefix"]
        right = _spelt(name, namespace)
        if key in (name, right):
            yield name
        elif prefix is None or prefix.lower() == namespace.lower() or (not namespace and is_setting(name)):
            raise ConfigurationError(f"{key} is not read: {_remedy(key, name, right)}")


def _spelt(name: str, namespace: str) -> str:
    spelt = f"{namespace}_{name}" if namespace else name
    return spelt.upper() if namespace.isupper() else spelt


def _remedy(key: str, name: str, right: str) -> str:
    prefix = key[: -len(name)].rstrip("_")
    if right == name and prefix:
        return f"this app has no namespace: write {name}, or app.config_from_object(..., namespace={prefix!r})"
    return f"write {right}"


def is_setting(name: str) -> bool:
    """Return True if there is a setting of this name."""
    return any(setting.name == name for setting in SETTINGS)


def not_read(app: Celery, name: str) -> str | None:
    """Return a hint for a setting that the app lacks, where the user gave it with another prefix, or in capitals; else
    None.
    """
    right = _spelt(name, getattr(app, "namespace", None) or "")
    for key in list(app.conf.keys()):
        if isinstance(key, str) and key not in (name, right) and f"_{key}".lower().endswith(f"_{name}"):
            return f"{key} is set, which this app does not read: {_remedy(key, name, right)}"
    return None


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
            raise ConfigurationError(f"{name} is not a setting of celery-neli; did you mean {nearest(name, known)}?")


_HEAD = (
    "# Settings",
    "",
    (
        "Set these in Celery's configuration, in lower case. Under a namespace such as Django's, write "
        "`CELERY_NELI_…`. Times are in seconds."
    ),
    "",
    (
        "A misspelt `neli_*` setting is refused, with the nearest name, where an election or a leader queue is used: "
        "in beats and workers, by `celery neli`, and when a `@leader_only` task is called. This page is the output of "
        "`python -m celery_neli.settings`."
    ),
    "",
    (
        "An entry may have options of its own, in its `options`: `neli_misfire`, `neli_misfire_max` and "
        "`neli_misfire_grace` ([missed slots](schedule.md#missed-slots-the-misfire-policy)), `neli_expires` "
        "([tasks not worth running late](schedule.md#tasks-that-are-not-worth-running-late-neli_expires)), and "
        "`neli_overlap` and `neli_overlap_age` "
        "([tasks that outlast their interval](schedule.md#tasks-that-outlast-their-interval-the-overlap-policy))."
    ),
)


def page() -> str:
    """Return the settings as the Markdown page `docs/settings.md`, by subject."""
    lines = list(_HEAD)
    for subject in dict.fromkeys(each.subject for each in SETTINGS):
        listed = [each for each in SETTINGS if each.subject == subject]
        lines += ["", f"## {subject}", "", "| setting | default | meaning |", "|---|---|---|"]
        lines += [f"| `{each.name}` | {each.default} | {each.meaning} |" for each in listed]
    return "\n".join(lines)


if __name__ == "__main__":
    print(page())
