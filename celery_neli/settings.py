"""Every setting: its name, default, unit and meaning. The README's table is made from here (`python -m
celery_neli.settings`); what is checked of them is in `config.py`.
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
        default="`celery_neli.ReplicatedScheduler`",
        meaning="the scheduler that the leading beat runs: a class, a path or an alias. The default keeps the state of "
        "the schedule in Kafka; with any other, state is where that scheduler keeps it",
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
        name="neli_in_doubt",
        default='`"send"`',
        meaning="what becomes of slots of which a leader that crashed may have sent the task, or not: `send` (again, "
        "with the same task id) or `skip` (logged, each of them)",
    ),
    Setting(
        name="neli_least_interval",
        default="1 s",
        meaning="the shortest interval that an entry put at runtime may have; one in `beat_schedule` may be shorter",
    ),
    Setting(
        name="neli_publish_parallel",
        default="1",
        meaning="how many connections to the task broker a beat uses while many entries are due (1 to 64): more help "
        "where the broker takes its time to answer, such as RabbitMQ with `confirm_publish`, or another data centre",
    ),
    Setting(
        name="neli_schedule_version",
        default="none",
        meaning="a whole number that rises with each version of `beat_schedule`: the leader makes way for a beat with "
        "a higher one",
    ),
    Setting(
        name="neli_shards",
        default="1",
        meaning="roles of the beat election (1 to 256), over which the entries are spread by name: so many beats can "
        "send side by side. May be raised; to lower it, stop all beats, and run `celery neli repair`",
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
            raise ConfigurationError(f"{name} is no setting of celery-neli; did you mean {nearest(name, known)}?")


def table() -> str:
    """The settings as a Markdown table."""
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    rows += [f"| `{each.name}` | {each.default} | {each.meaning} |" for each in SETTINGS]
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
