"""Settings: checked where they are made, with an error that names the setting, the values and the remedy."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery

from celery_neli import Config, ConfigurationError
from celery_neli.beat.scheduler import Scheduler
from celery_neli.config import from_app, leader_queue, setting
from celery_neli.settings import SETTINGS


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"heartbeat_timeout": 1.0},
            r"neli_heartbeat_timeout = 1 s is less than 3 × neli_heartbeat_interval = 0\.5 s.*raise the timeout",
        ),
        ({"heartbeat_timeout": 400}, r"neli_heartbeat_timeout = 400: give a number of seconds from 0\.001 to 300"),
        ({"takeover_delay": 4}, r"neli_takeover_delay = 4 s is not below neli_heartbeat_timeout = 4 s"),
        ({"heartbeat_interval": "often"}, r"neli_heartbeat_interval = 'often': give a number of seconds"),
        ({"heartbeat_interval": True}, r"neli_heartbeat_interval = True"),
        ({"heartbeat_interval": 0}, r"neli_heartbeat_interval = 0"),
        ({"drain_timeout": float("nan")}, r"neli_drain_timeout = nan"),
        ({"session_timeout": 0.5}, r"neli_session_timeout = 0\.5: give a number of seconds from 1 to 3600"),
        ({"stall_timeout": 0.5}, r"neli_stall_timeout = 0\.5: give a number of seconds from 1 to"),
        ({"group": "a b"}, r"neli_group = 'a b': use 1 to 249"),
        ({"group": ".."}, r"neli_group = '\.\.'"),
        ({"topic": "x" * 250}, r"neli_topic = "),
        ({"roles": ()}, r"neli_roles = \(\): give a list of one or more names"),
        ({"roles": ("a", "a")}, r"neli_roles = \('a', 'a'\)"),
        ({"roles": ("a b",)}, r"neli_roles = \('a b',\)"),
        ({"roles": "billing"}, r"neli_roles = 'billing': give a list of one or more names"),
        ({"roles": 3}, r"neli_roles = 3: give a list of one or more names"),
        ({"rebalance_after": 0}, r"neli_rebalance_after = 0: give a number of seconds"),
        ({"kafka": 9092}, r"neli_kafka is a int: give the bootstrap servers"),
        ({"kafka": {"sasl.password": "hush"}}, r"neli_kafka lacks 'bootstrap.servers'"),
        ({"kafka": "redis://localhost:6379"}, r"neli_kafka has the server 'redis://localhost:6379': give host:port"),
        (
            {"kafka": {"bootstrap.servers": "k:1", "acks": "1"}},
            r"neli_kafka has acks='1', but an election needs",
        ),
        ({"kafka": " "}, r"neli_kafka lacks 'bootstrap.servers'"),
    ],
)
def test_a_bad_setting_is_refused_with_its_name_and_value(settings: dict[str, Any], message: str) -> None:
    """One clear error, when the configuration is made."""
    with pytest.raises(ConfigurationError, match=message) as error:
        Config(**{"group": "shop", **settings})
    assert "hush" not in str(error.value)


def test_a_repr_shows_no_secret() -> None:
    """Only addresses and mechanisms of `kafka` are shown."""
    shown = repr(
        Config(group="shop", kafka={"bootstrap.servers": "k:9092", "sasl.password": "hush", "sasl.username": "me"})
    )
    assert "hush" not in shown
    assert "k:9092" in shown


@pytest.mark.parametrize(
    "kafka", ["a:1,b:2", ["a:1", "b:2"], {"bootstrap.servers": "a:1,b:2"}, {"metadata.broker.list": "a:1,b:2"}]
)
def test_kafka_is_servers_or_properties(kafka: Any) -> None:
    """A string, a list or a dict of librdkafka properties."""
    assert dict(Config(group="shop", kafka=kafka).properties) == {"bootstrap.servers": "a:1,b:2"}


def test_an_app_names_groups_and_topics_by_election() -> None:
    """Beats and workers of one deployment never meet."""
    app = Celery()
    app.conf.update(neli_group="shop", neli_heartbeat_timeout=6)
    beat, worker = from_app(app, "beat"), from_app(app, "worker")
    assert (beat.group, beat.topic) == ("shop.beat", "shop.beat.neli")
    assert (worker.group, worker.topic) == ("shop.worker", "shop.worker.neli")
    assert beat.heartbeat_timeout == 6.0


def test_a_misspelt_setting_is_refused_with_the_nearest_name() -> None:
    """Celery passes unknown settings in silence; a leader without its settings is a wrong promise."""
    app = Celery()
    app.conf.update(neli_group="shop", neli_hartbeat_timeout=6)
    with pytest.raises(
        ConfigurationError,
        match=r"neli_hartbeat_timeout is not a setting of celery-neli; did you mean neli_heartbeat_timeout",
    ):
        from_app(app, "beat")


def test_a_namespace_prefixes_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Django's CELERY_NELI_*: read, and refused when misspelt."""
    app = Celery(namespace="CELERY")
    app.config_from_object({"CELERY_NELI_GROUP": "shop", "CELERY_NELI_KAFKA": "k:1"}, namespace="CELERY")
    assert from_app(app, "beat").properties["bootstrap.servers"] == "k:1"
    app = Celery()
    app.config_from_object({"CELERY_NELI_GROUP": "shop", "CELERY_NELI_KAFKKA": "k:1"}, namespace="CELERY")
    with pytest.raises(ConfigurationError, match=r"neli_kafkka is not a setting.*neli_kafka"):
        from_app(app, "beat")


def test_a_setting_in_capitals_without_a_namespace_is_refused() -> None:
    """Celery would silently not read it."""
    app = Celery()
    app.conf.update(neli_group="shop", NELI_DRAIN_TIMEOUT=3)
    with pytest.raises(ConfigurationError, match="NELI_DRAIN_TIMEOUT is not read: write neli_drain_timeout"):
        from_app(app, "beat")


@pytest.mark.parametrize(
    ("conf", "namespace", "line"),
    [
        (
            {"CELERY_NELI_GROUP": "shop"},
            None,
            "CELERY_NELI_GROUP is not read: this app has no namespace: write neli_group",
        ),
        ({"celery_neli_group": "shop"}, None, "celery_neli_group is not read: this app has no namespace"),
        ({"neli_group": "shop", "CELERY_NELI_SHARDS": 2}, None, r"CELERY_NELI_SHARDS is not read.*namespace='CELERY'"),
        ({"neli_group": "shop", "SHOP_NELI_SHARDS": 2}, None, "SHOP_NELI_SHARDS is not read"),
        (
            {"CELERY_NELI_GROUP": "shop", "NELI_SHARDS": 2},
            "CELERY",
            "NELI_SHARDS is not read: write CELERY_NELI_SHARDS",
        ),
        (
            {"CELERY_NELI_GROUP": "shop", "Celery_neli_shards": 2},
            "CELERY",
            "Celery_neli_shards is not read: write CELERY",
        ),
        (
            {"CELERY_NELI_GROUP": "shop"},
            "SHOP",
            "neli_group is not set: CELERY_NELI_GROUP is set.*write SHOP_NELI_GROUP",
        ),
        ({"NELI_GROUP": "shop"}, None, "NELI_GROUP is not read: write neli_group"),
    ],
)
def test_a_setting_that_celery_would_not_read_is_refused(
    conf: dict[str, Any], namespace: str | None, line: str
) -> None:
    """With the wrong prefix, without one, or in the wrong case it would be passed in silence."""
    app = Celery()
    app.config_from_object(conf, namespace=namespace)
    with pytest.raises(ConfigurationError, match=line):
        from_app(app, "beat")


@pytest.mark.parametrize(
    ("conf", "namespace"),
    [
        ({"SHOP_NELI_GROUP": "shop", "BLOG_NELI_GROUP": "blog", "BLOG_NELI_SHARDS": 2}, "SHOP"),
        ({"neli_group": "shop", "MY_NELI_SWITCH": 1}, None),
        ({"celery_neli_group": "shop"}, "celery"),
    ],
)
def test_settings_of_other_apps_and_projects_are_let_alone(conf: dict[str, Any], namespace: str | None) -> None:
    """Two apps may have namespaces of their own in one settings module."""
    app = Celery()
    app.config_from_object(conf, namespace=namespace)
    assert from_app(app, "beat").group == "shop.beat"


def test_a_group_is_required() -> None:
    """Two environments on one Kafka must not elect one leader between them."""
    with pytest.raises(ConfigurationError, match=r"neli_group is not set"):
        from_app(Celery(), "beat")


def test_one_topic_for_both_elections_is_refused() -> None:
    """A beat and a worker never stand in one election."""
    app = Celery()
    app.conf.update(neli_group="shop", neli_topic="mine")
    with pytest.raises(ConfigurationError, match=r"neli_topic = 'mine'.*{election}"):
        from_app(app, "beat")
    app.conf.neli_topic = "mine.{election}"
    assert from_app(app, "worker").topic == "mine.worker"


def test_roles_are_the_workers() -> None:
    """A beat has one role, whatever the workers have."""
    app = Celery()
    app.conf.update(neli_group="shop", neli_roles=["billing", "mail"], neli_rebalance_after=5)
    assert from_app(app, "worker").roles == ("billing", "mail")
    assert from_app(app, "worker").rebalance_after == 5.0
    assert from_app(app, "beat").roles == ("leader",)


def test_a_worker_has_settings_of_its_own() -> None:
    """Each role's queue has its name in it; a value of another kind is refused."""
    app = Celery()
    app.conf.update(neli_group="shop")
    assert leader_queue(app, "mail") == "shop.leader.mail"
    assert setting(app, "neli_fence_kills") is False
    app.conf.neli_leader_queue = "singletons"
    with pytest.raises(ConfigurationError, match=r"neli_leader_queue = 'singletons'.*{role}"):
        leader_queue(app, "mail")
    app.conf.update(neli_leader_queue="{role}-only", neli_fence_kills="yes")
    with pytest.raises(ConfigurationError, match="neli_fence_kills = 'yes': give True or False"):
        setting(app, "neli_fence_kills")
    assert leader_queue(app, "mail") == "mail-only"


class Unprintable:
    """A value whose `repr` fails."""

    def __repr__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    "value",
    [[], {}, -1, float("nan"), float("inf"), 10**400, "no\nsuch", b"x", {"a", "b"}, object(), Unprintable()],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("name", [each for each in SETTINGS if each != "neli_kafka"])
def test_whatever_a_setting_holds_that_is_none_is_one_line(name: str, value: Any) -> None:
    """It names the setting; nothing has been started, and nothing takes its default without a word."""
    app = Celery(set_as_current=False)
    app.conf.update({"neli_group": "g", name: value})
    with pytest.raises(ConfigurationError) as raised:
        refuse_settings(app)
    assert str(raised.value).startswith(f"{name} ")
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 500


def refuse_settings(app: Celery) -> None:
    """Check what a beat and a worker check when they start."""
    scheduler = Scheduler(app, lazy=True)
    scheduler.neli_check()
    from_app(app, "worker")
    leader_queue(app, "leader")
    setting(app, "neli_fence_kills")


@pytest.mark.parametrize("name", [each for each in SETTINGS if each != "neli_group"])
def test_none_is_the_default_of_every_setting(name: str) -> None:
    """As an environment variable that is not set gives it."""
    app = Celery(set_as_current=False)
    app.conf.update({"neli_group": "g", name: None})
    refuse_settings(app)


@pytest.mark.parametrize(
    ("name", "value", "most"), [("neli_group", "g" * 229, 228), ("neli_topic", "{election}" + "t" * 237, 240)]
)
def test_a_name_leaves_room_for_the_topics_that_are_called_after_it(name: str, value: str, most: int) -> None:
    """Kafka takes 249 characters; the schedule topic's name is the longest."""
    app = Celery(set_as_current=False)
    app.conf.update({"neli_group": "g", name: value})
    with pytest.raises(ConfigurationError, match=f"^{name} = .*use 1 to {most} of the characters"):
        from_app(app, "beat")
