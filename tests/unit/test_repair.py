"""`celery neli repair`: records that no beat with this `neli_shards` can serve are made to fit it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from confluent_kafka import Consumer, Producer, TopicPartition

from celery_neli import Neli
from celery_neli.beat.replicated.sharding import begin, owner
from celery_neli.cli import neli
from celery_neli.config import Config, from_app
from celery_neli.election.records import Record, encode
from celery_neli.handover import plan
from tests.unit.schedulers import make_app
from tests.unit.test_shards import tells

if TYPE_CHECKING:
    from collections.abc import Mapping

    from celery import Celery

    from celery_neli.embedded import EmbeddedKafka

NOW = 1_700_000_000.0


def marks(claimed: float, done: float, tried: float | None = None, **more: Any) -> dict[str, Any]:
    """What a record carries; seconds since `NOW`."""
    data = {"claimed": NOW + claimed, "done": NOW + done, **more}
    return data if tried is None else {**data, "tried": NOW + tried}


# -- what is to be done --


@pytest.mark.parametrize("found", [[None], [{}], [marks(0, 0)], [marks(0, 0, shards=2), marks(0, 0, shards=2)]])
def test_what_can_be_served_stays_as_it_is(found: list[Mapping[str, Any] | None]) -> None:
    """Also what a release wrote that told no number."""
    assert plan(found, 2, now=NOW) == []


@pytest.mark.parametrize("shards", [200, 10**30, "many", True, 2.5])
def test_a_forged_number_is_replaced_and_the_marks_stay(shards: Any) -> None:
    """Then a beat can begin, in doubt about nothing more than before."""
    (change,) = plan([marks(9, 8, shards=shards, base=5, junk="x")], 1, now=NOW)
    assert change.data == marks(9, 8, shards=1, base=5)
    beginning = begin(0, 1, tells(r0=change.data), now=NOW)
    assert beginning is not None


def test_a_lowered_number_gives_entries_back_to_the_shards_that_they_came_from() -> None:
    """In doubt is what is in doubt for any of them; settled is what is settled for all."""
    found = [marks(9, 8, shards=4), marks(19, 18, shards=4), marks(7, 3, shards=4), marks(30, 20, shards=4)]
    changes = plan(found, 2, now=NOW)
    assert [dict(each.data) for each in changes] == [
        marks(9, 3, shards=2), marks(30, 18, shards=2), {"shards": 2}, {"shards": 2},
    ]  # fmt: skip
    for name in (f"entry-{n}" for n in range(500)):  # who serves an entry now, knows the marks of who served it
        before, after = owner(name, 4), owner(name, 2)
        mine, theirs = changes[after].data, found[before]
        assert mine["done"] <= theirs["done"]
        assert mine["claimed"] >= theirs["claimed"]


def test_a_clean_end_of_all_leaves_no_doubt() -> None:
    """Where each told what was tried, that is known of all; where one did not, it is not."""
    clean, dirty = marks(9, 9, 0, shards=2), marks(9, 8, shards=2)
    (first, _) = plan([clean, marks(7, 7, 2, shards=2)], 1, now=NOW)
    assert first.data == marks(9, 7, 2, shards=1)
    (first, _) = plan([clean, dirty], 1, now=NOW)
    assert "tried" not in first.data


def test_a_shard_that_is_no_more_waits_for_the_others_when_the_number_is_raised_again() -> None:
    """It carries no marks, so that a beat with the old number does not run its entries beside the new one."""
    changes = plan([marks(9, 8, shards=2), marks(19, 18, shards=2)], 1, now=NOW)
    assert begin(1, 2, tells(r0=changes[0].data, r1=changes[1].data), now=NOW) is None
    again = begin(0, 2, tells(r0=changes[0].data), now=NOW)
    assert again is not None
    second = begin(1, 2, tells(r0=again.data, r1=changes[1].data), now=NOW)
    assert second is not None
    assert second.marks == again.marks


# -- doing it --


@pytest.fixture
def app(embedded_kafka: EmbeddedKafka) -> Celery:
    return make_app(neli_group="g", neli_kafka=embedded_kafka.bootstrap_servers, neli_heartbeat_timeout=1.5)


def forge(config: Config, data: Mapping[str, Any]) -> None:
    """Somebody claims the first role of an empty log."""
    producer = Producer({"bootstrap.servers": config.properties["bootstrap.servers"], "log_level": 0})
    claim = Record(kind="claim", member="forger/1", seq=1, lease=0.5, seen=-1, data=data)
    beats = [
        Record(kind="beat", member="forger/1", seq=2 + n, lease=0.5, seen=n, term=0, data=data) for n in range(400)
    ]
    for record in (claim, *beats):
        producer.produce(config.topic, encode(record), "leader", partition=0)
    assert producer.flush(20) == 0


def end(config: Config) -> int:
    """How many records the first role has."""
    reader = Consumer({"bootstrap.servers": config.properties["bootstrap.servers"], "group.id": "end", "log_level": 0})
    try:
        return reader.get_watermark_offsets(TopicPartition(config.topic, 0), timeout=20)[1]
    finally:
        reader.close()


def repair(app: Celery, *args: str) -> tuple[int, str]:
    result = CliRunner().invoke(neli, ["repair", *args], obj=SimpleNamespace(app=app), catch_exceptions=False)
    return result.exit_code, result.output


def carried(config: Config) -> Mapping[str, Any]:
    """What a member that comes afterwards finds, and takes the lead with."""
    with Neli(config) as member:
        assert member.pulse(20)
        return member.role("leader").last_payload.data or {}


@pytest.mark.integration
def test_a_forged_claim_is_got_rid_of(app: Celery) -> None:
    """`--dry-run` says what would be done and does nothing; a second repair has nothing to do."""
    config = from_app(app, "beat")
    forge(config, marks(0, -5, shards=200))
    status, output = repair(app, "--dry-run")
    assert status == 0
    assert "role 0: shards 200 -> 1, its marks stay" in output
    assert "nothing was written" in output
    assert end(config) == 401
    status, output = repair(app)
    assert (status, "done" in output) == (0, True), output
    written = end(config)
    assert repair(app)[1].startswith("nothing to repair")
    assert end(config) == written
    assert carried(config) == marks(0, -5, shards=1)


@pytest.mark.integration
def test_a_role_that_is_served_is_not_touched(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command names who leads, and what to do first."""
    monkeypatch.setattr("celery_neli.handover.SETTLED", -1.0)
    config = from_app(app, "beat")
    with Neli(config) as member:
        pulser = member.background(lambda: None)
        assert member.pulse(20)
        term = member.role("leader").term
        status, output = repair(app)
        assert status == 1
        assert f"{config.name} leads role leader" in output
        assert "stop all beats first" in output
        assert member.role("leader").term == term
        assert member.is_leader
        pulser.close()


@pytest.mark.integration
def test_nothing_is_repaired_where_no_beat_ever_was(app: Celery) -> None:
    """And no topic is made."""
    app.conf.neli_group = "other"
    status, output = repair(app)
    assert (status, "no leader topic" in output) == (1, True)
