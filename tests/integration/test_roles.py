"""Several roles over several members on a real broker: spread, failover, handover, and a list that grows."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from confluent_kafka import Consumer, TopicPartition

from celery_neli import Neli
from celery_neli.config import Config
from celery_neli.election.role_state import LeaderAcquired, LeaderEvent
from celery_neli.status import TAIL, look
from tests.processes import wait_until

pytestmark = pytest.mark.integration
ROLES = tuple("abcdefgh")


class Worker:
    """A member, what it was told, and when."""

    def __init__(self, config: Config) -> None:
        self.told: list[tuple[float, LeaderEvent]] = []
        self.neli = Neli(config, lambda event: self.told.append((time.monotonic(), event)))
        self.pulser = self.neli.background(lambda: time.sleep(0.05))

    @property
    def terms(self) -> dict[str, int | None]:
        """The roles that it leads, and in which terms."""
        terms = {role: self.neli.role(role).leading_term() for role in self.neli.config.roles}
        return {role: term for role, term in terms.items() if term is not None}

    def acquired(self, since: float) -> dict[str, float]:
        """Roles that it came to lead after `since`, and how many seconds after."""
        return {event.role: at - since for at, event in self.told if isinstance(event, LeaderAcquired) and at > since}

    def close(self) -> None:
        self.neli.close()


@pytest.fixture
def work(kafka, names) -> Iterator[Callable[..., Worker]]:
    """Start members of one election, which are closed at the end."""
    started: list[Worker] = []

    def work(roles: tuple[str, ...] = ROLES, **settings: float) -> Worker:
        name = f"w{len(started) + 1}"
        started.append(Worker(Config(group=f"{names('g')}.worker", kafka=kafka, name=name, roles=roles, **settings)))
        return started[-1]

    yield work
    for each in started:
        each.neli.request_close()
    for each in started:
        each.close()


def led(workers: list[Worker], each: int | None = None) -> bool:
    """All roles are led, by one worker each; every worker leads so many, if given."""
    terms = [worker.terms for worker in workers]
    return sorted(role for led in terms for role in led) == list(ROLES) and (
        each is None or {len(led) for led in terms} == {each}
    )


def at_rest(workers: list[Worker]) -> bool:
    """Nothing has changed for three times `rebalance_after`, so nothing will."""
    return all(time.monotonic() - at > 6.0 for each in workers for at, _ in each.told)


@pytest.mark.slow
def test_status_tells_of_every_role_and_resign_moves_one(work, kafka, names):
    """In less than two seconds; a role that was moved by hand stays there for `rebalance_after`."""
    settings = {"neli_group": names("g"), "neli_kafka": kafka, "neli_roles": ROLES}

    def celery(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "celery", "-A", "tests.smoke.project", "neli", *arguments]
        environment = {**os.environ, "SMOKE_SETTINGS": json.dumps(settings)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    workers = [work(rebalance_after=2.0) for _ in range(4)]
    wait_until(lambda: at_rest(workers) and led(workers, each=2), timeout=60, what="two roles each")
    began = time.monotonic()
    told = celery("status", "--election", "worker", "--json")
    took = time.monotonic() - began
    words = celery("status", "--election", "worker").stdout
    print(f"status took {took:.2f} s:\n{words}")
    assert told.returncode == 0, told.stderr
    assert took < 8
    (election,) = json.loads(told.stdout)["elections"]
    leads = {f"w{number}": list(each.terms) for number, each in enumerate(workers, 1)}
    assert {each["role"]: (each["leader"], each["term"]) for each in election["roles"]} == {
        role: (name, each.terms[role])
        for (name, roles), each in zip(leads.items(), workers, strict=True)
        for role in roles
    }
    assert all(0 < time.time() - each["since"] < 120 for each in election["roles"])
    assert {each["name"]: each["leads"] for each in election["members"]} == leads
    assert {each["name"]: each["induced"] for each in election["members"]} == leads
    for name, (first, second) in leads.items():
        assert f"role {first}: {name} leads" in words
        assert f"{name}  127.0.0.1  leads {first}, {second}  induced for {first}, {second}" in words.replace("/", "")

    role, other, before = leads["w1"][0], leads["w1"][1], workers[0].terms
    refused = [celery("resign", "--election", "worker"), celery("resign", "--role", role)]
    assert "several roles; name one with --role" in refused[0].stderr
    assert f"no role '{role}'" in refused[1].stderr
    assert "--election" in refused[1].stderr
    done = celery("resign", "--election", "worker", "--role", role, "--to", "w3")
    moved = time.monotonic()
    assert done.returncode == 0, done.stderr
    assert f"worker role {role}: w1 (term {before[role]}) handed over to w3" in done.stdout
    assert workers[0].terms == {other: before[other]}
    wait_until(lambda: role in workers[0].terms, timeout=20, what="the role to come back to whom it is assigned")
    assert time.monotonic() - moved > 1.0


@pytest.mark.slow
def test_roles_are_spread_and_stay_where_they_are_while_others_move(work):
    """Two of eight each; those of one that leaves move, and come to the newcomer: no other role changes its term."""
    workers = [work(rebalance_after=2.0) for _ in range(4)]
    wait_until(lambda: at_rest(workers) and led(workers, each=2), timeout=60, what="two roles each")
    gone, *left = workers
    kept = [each.terms for each in left]
    began = time.monotonic()
    gone.close()
    # A barrier hears of a term a moment after the lease allows it.
    wait_until(lambda: led(left) and any(each.acquired(began) for each in left), timeout=10, what="the others to lead")
    wait_until(lambda: sum(len(each.acquired(began)) for each in left) >= 2, timeout=10, what="both to be told")
    took = [seconds for each in left for seconds in each.acquired(began).values()]
    print(f"closed: {len(took)} roles acquired {min(took):.2f} to {max(took):.2f} s after")
    assert len(took) == 2
    assert all(had.items() <= each.terms.items() for each, had in zip(left, kept, strict=True))
    wait_until(lambda: at_rest(left) and led(left), timeout=30, what="rest")
    began = time.monotonic()
    newcomer = work(rebalance_after=2.0)
    workers = [*left, newcomer]
    wait_until(lambda: at_rest(workers) and led(workers, each=2), timeout=60, what="two roles each again")
    moved = {role: seconds for each in workers for role, seconds in each.acquired(began).items()}
    print(f"a newcomer has its share after {max(moved.values()):.1f} s, moved were {sorted(moved)}")
    assert set(moved) == set(newcomer.terms), "no role moved but to the newcomer"


def test_roles_that_are_added_do_not_disturb_those_that_are_led(work):
    """A member with a longer list adds the partitions; whoever has the short list leads on, in its term."""
    old = work(("a", "b"))
    wait_until(lambda: set(old.terms) == {"a", "b"}, timeout=30, what="a leader of both roles")
    terms = old.terms
    new = work(("a", "b", "c", "d"))
    wait_until(lambda: set(new.terms) == {"c", "d"}, timeout=30, what="a leader of the new roles")
    time.sleep(3.0)  # the old member's clients learn of the partitions within a second, and the group balances
    assert old.terms == terms
    assert {event.role for _, event in old.told} == {"a", "b"}
    assert len(old.told) == 2


def test_status_tells_since_when_a_role_is_led_however_many_heartbeats_ago(work):
    """The claims lie before the records that are read to find the leaders; all are looked up in one go."""
    began = time.time()
    worker = work(("a", "b", "c"), heartbeat_interval=0.01)
    config = worker.neli.config
    wait_until(lambda: len(worker.terms) == 3, timeout=30, what="a leader of all roles")
    reader = Consumer({"bootstrap.servers": config.properties["bootstrap.servers"], "group.id": "asker"})

    def long_ago() -> bool:
        ends = [reader.get_watermark_offsets(TopicPartition(config.topic, role), timeout=10)[1] for role in range(3)]
        return all(end - term > TAIL + 50 for end, term in zip(ends, worker.terms.values(), strict=True))

    try:
        wait_until(long_ago, timeout=60, what="many heartbeats")
    finally:
        reader.close()
    told = look(config, "worker", log=logging.getLogger("celery_neli.cli"))
    now = time.time()
    since = [each.since for each in told.roles]
    assert all(each is not None and began < each < now - 2 for each in since)
    assert [each.term for each in told.roles] == list(worker.terms.values())


def test_status_tells_of_a_role_whose_partition_is_not_there_yet(work):
    """The list is longer than what the members that run know of."""
    worker = work(("a",))
    wait_until(lambda: worker.terms, timeout=30, what="a leader")
    longer = dataclasses.replace(worker.neli.config, roles=("a", "b"), name="asker")
    told = look(longer, "worker", log=logging.getLogger("celery_neli.cli"))
    assert [each.leader for each in told.roles] == ["w1", None]
    assert "does not exist yet" in (told.roles[1].reason or "")
    assert not told.led
