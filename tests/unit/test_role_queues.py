"""The queues of the leaders: made by the app's rules, consumed by nobody else."""

from __future__ import annotations

import pytest
from celery.local import Proxy
from kombu import Exchange

from celery_neli.exceptions import ConfigurationError
from celery_neli.worker.bootsteps import refuse_queues
from celery_neli.worker.task_marking import role_of, role_queue
from tests.unit.leases import make_app


def test_a_queue_is_named_after_group_and_role() -> None:
    """And `neli_leader_queue` may say otherwise."""
    assert role_queue(make_app("shop")).name == "shop.leader.leader"
    other = make_app("shop", neli_leader_queue="only-{role}", neli_roles=["mail", "billing"])
    assert role_queue(other, "billing").name == "only-billing"


def test_a_queue_follows_the_rules_of_the_app() -> None:
    """Priorities and the exchange's type, as for any queue that Celery makes."""
    app = make_app("shop", task_queue_max_priority=7)
    app.amqp.autoexchange = lambda name: Exchange(f"to-{name}", type="topic")
    queue = role_queue(app)
    assert queue.queue_arguments == {"x-max-priority": 7}
    assert (queue.exchange.name, queue.exchange.type) == ("to-shop.leader.leader", "topic")
    assert queue.routing_key == "shop.leader.leader"


def test_a_queue_is_made_where_celery_may_make_none() -> None:
    """`task_create_missing_queues=False` is about misspelt names; this one is nobody's spelling."""
    assert role_queue(make_app("shop", task_create_missing_queues=False)).name == "shop.leader.leader"


def test_a_queue_stays_out_of_the_app() -> None:
    """What is in `app.amqp.queues`, a worker may come to consume."""
    app = make_app("shop")
    queue = role_queue(app)
    assert role_queue(app) is queue
    assert queue.name not in app.amqp.queues
    assert queue.name not in app.amqp.queues.consume_from


def test_a_queue_needs_the_group() -> None:
    """Otherwise two environments on one broker would share it."""
    app = make_app("shop")
    app.conf.neli_group = None
    with pytest.raises(ConfigurationError, match="neli_group is not set"):
        role_queue(app)


def test_a_publisher_refuses_a_misspelt_setting() -> None:
    """It would send to a queue that no leader consumes."""
    with pytest.raises(ConfigurationError, match=r"neli_leader_que is not a setting .* did you mean neli_leader_queue"):
        role_queue(make_app("shop", neli_leader_que="{role}"))


def test_a_proxy_of_the_app_will_do() -> None:
    """A task of a class that nobody registered has Celery's `current_app`."""
    app = make_app("shop")
    assert role_queue(Proxy(lambda: app)) is role_queue(app)


def test_a_role_may_be_left_out_if_there_is_one() -> None:
    """Of several one must be named, and exist."""
    assert role_of(make_app("shop"), None) == "leader"
    app = make_app("shop", neli_roles=["billing", "mail"])
    assert role_of(app, "mail") == "mail"
    with pytest.raises(ConfigurationError, match=r"names no role, and neli_roles has 2.*'billing', 'mail'"):
        role_of(app, None)
    with pytest.raises(ConfigurationError, match=r"role='post'.*'billing', 'mail'"):
        role_of(app, "post")


def test_a_worker_told_to_consume_a_leader_queue_is_refused() -> None:
    """By `-Q`, by `task_queues`, by the default queue: the message says which."""
    app = make_app("shop")
    refuse_queues(app)
    app.amqp.queues.select(["celery", "shop.leader.leader"])  # what -Q does
    with pytest.raises(ConfigurationError, match=r"'shop.leader.leader'.*'leader'.*-Q names it"):
        refuse_queues(app)
    with pytest.raises(ConfigurationError, match="task_queues names it"):
        refuse_queues(make_app("shop", task_queues=[role_queue(make_app("shop"))]))
    with pytest.raises(ConfigurationError, match="task_default_queue names it"):
        refuse_queues(make_app("shop", task_default_queue="shop.leader.leader"))


def test_quorum_queues_for_leaders_alone_are_refused() -> None:
    """RabbitMQ refuses a global prefetch limit on them, and Celery would not know that there are any."""
    settings = {"task_create_missing_queue_type": "quorum", "task_create_missing_queue_exchange_type": "topic"}
    alone = make_app("shop", **settings)
    if "x-queue-type" not in (role_queue(alone).queue_arguments or {}):
        pytest.skip("this Celery makes no quorum queues by itself")
    refuse_queues(alone)  # on the memory transport there are none
    alone = make_app("shop", **settings, broker_url="amqp://127.0.0.1:1//")
    with pytest.raises(ConfigurationError, match="set task_default_queue_type = 'quorum' too"):
        refuse_queues(alone)
    refuse_queues(make_app("shop", **settings, broker_url="amqp://127.0.0.1:1//", task_default_queue_type="quorum"))
