"""`celery neli explain` on an embedded Kafka whose topics are written by hand."""

from __future__ import annotations

import json
import time
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from confluent_kafka import Producer

from celery_neli import periodic
from celery_neli.cli import neli
from celery_neli.config import from_app, owner
from celery_neli.election.records import Record, encode
from celery_neli.embedded import EmbeddedKafka
from celery_neli.history import records
from celery_neli.history.records import RunRecord, SlotRecord
from celery_neli.schedule_topic.codec import (
    ENTRY,
    STATE,
    Change,
    Definition,
    Kind,
    State,
    encode_definition,
    encode_state,
    key_of,
    partition_of,
)
from tests.unit.schedulers import make_app

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY_NAME = "report"
HOUR = 3600.0
#: The last full hour but one: a slot of an hourly crontab.
SLOT = (time.time() // HOUR - 1) * HOUR


class House:
    """An app with one entry of each kind, and topics to write to."""

    def __init__(self, kafka: EmbeddedKafka, **conf: Any) -> None:
        given: dict[str, Any] = {
            "neli_group": "g",
            "neli_kafka": kafka.bootstrap_servers,
            "neli_scheduler": None,
            "beat_schedule": {ENTRY_NAME: {"task": "t", "schedule": _hourly()}},
            "timezone": "UTC",
        }
        self.app = make_app(**{**given, **conf})
        self.config = from_app(self.app, "beat")
        kafka.create_topic(self.config.topic, partitions=len(self.config.roles))
        kafka.create_topic(self.config.schedule_topic, partitions=17)
        kafka.create_topic(self.config.history_topic, partitions=4)
        self._producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
        self._ends: dict[int, int] = {}

    def leads(self, member: str, begin: float, end: float, *, role: int = 0, marks: float = SLOT) -> None:
        """Let a member lead from `begin` to `end`, seconds after the slot; it claims and settles the slot `marks`."""
        term = self._lead(role, "claim", member, begin, claimed=0.0, done=0.0)
        self._lead(role, "beat", member, begin + 1, term=term, claimed=marks + 1, done=0.0)
        at = begin + 2
        while at < end:
            self._lead(role, "beat", member, at, term=term, claimed=marks + 1, done=marks + 1)
            at += 120
        self._lead(role, "beat", member, end, term=term, claimed=marks + 1, done=marks + 1)

    def _lead(self, role: int, kind: Any, member: str, at: float, *, term: int | None = None, **data: float) -> int:
        offset = self._ends.get(role, 0)
        self._ends[role] = offset + 1
        record = Record(
            kind=kind, member=f"{member}/1", seq=offset + 1, lease=300.0, seen=offset - 1, term=term, data=data
        )
        self._write(self.config.topic, role, b"leader", encode(record), at)
        return offset

    def defined(self, kind: Kind, name: str, value: bytes | None, at: float) -> None:
        self._write(self.config.schedule_topic, partition_of(kind, name), key_of(kind, name), value, at)

    def state(self, last: float, runs: int, at: float, name: str = ENTRY_NAME) -> None:
        self.defined(STATE, name, encode_state(State(SLOT + last, runs, 1)), at)

    def happened(self, record: SlotRecord | RunRecord) -> None:
        key = records.key_of(record)
        self._write(self.config.history_topic, records.partition_of(key), key, records.encode(record), record.at - SLOT)

    def _write(self, topic: str, partition: int, key: bytes, value: bytes | None, at: float) -> None:
        moment = round((SLOT + at) * 1000)
        self._producer.produce(topic, value, key, partition=partition, timestamp=moment)
        assert self._producer.flush(20) == 0

    def close(self) -> None:
        self._producer.close()

    def run(self, *arguments: str) -> Any:
        return CliRunner().invoke(neli, ["explain", *arguments], obj=SimpleNamespace(app=self.app))

    def story(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        done = self.run(*arguments, "--json")
        assert done.output.startswith("{"), (done.output, done.exception)
        return done.exit_code, json.loads(done.output)


def _hourly() -> Any:
    from celery.schedules import crontab

    return crontab(minute="0")


def iso(at: float) -> str:
    return datetime.fromtimestamp(at, timezone.utc).isoformat()


@pytest.fixture
def kafka() -> Iterator[EmbeddedKafka]:
    with EmbeddedKafka() as running:
        yield running


@pytest.fixture
def house(kafka: EmbeddedKafka) -> Iterator[House]:
    yield (made := House(kafka))
    made.close()


def sent(slot: float = SLOT, late: float = 0.01, entry: str = ENTRY_NAME, **more: Any) -> SlotRecord:
    return SlotRecord(
        entry=entry, task="t", slot=slot, outcome="sent", at=slot + late, member="beat1", id=f"id-{slot}", **more
    )


def test_a_slot_is_told_from_all_three_topics(house: House) -> None:
    house.leads("beat1", -HOUR, HOUR)
    house.state(-HOUR, 1, -HOUR)
    house.state(0, 2, 0.1)
    house.happened(sent(term=0))
    house.happened(
        RunRecord(entry=ENTRY_NAME, task="t", slot=SLOT, id=f"id-{SLOT}", state="started", at=SLOT + 1, worker="w@h")
    )
    house.happened(
        RunRecord(
            entry=ENTRY_NAME, task="t", slot=SLOT, id=f"id-{SLOT}", state="succeeded", at=SLOT + 3, worker="w@h",
            runtime=2.0,
        )
    )  # fmt: skip
    status, found = house.story(ENTRY_NAME, iso(SLOT))
    assert (status, found["verdict"], found["slot"]) == (0, "succeeded", SLOT)
    told = [each["what"] for each in found["events"]]
    assert "term 0 claimed the slot (offset 1)" in told
    assert any("had sent its message" in each for each in told)
    text = house.run(ENTRY_NAME, iso(SLOT))
    assert text.exit_code == 0
    assert "Its task succeeded on w@h in 2.0 s" in text.output


def test_the_last_slot_is_meant_by_default(house: House) -> None:
    house.leads("beat1", -HOUR, HOUR)
    before = time.time()
    _, found = house.story(ENTRY_NAME)
    assert found["slot"] in {at // HOUR * HOUR for at in (before, time.time())}


def test_a_time_between_slots_that_were_left_out_together_is_no_slot(house: House) -> None:
    house.leads("beat1", -HOUR, HOUR)
    left_out = {"entry": ENTRY_NAME, "task": "t", "outcome": "skipped", "policy": "misfire", "member": "beat1"}
    house.happened(SlotRecord(slot=SLOT, first=SLOT - 2 * HOUR, count=3, at=SLOT + 60, **left_out))
    assert house.story(ENTRY_NAME, iso(SLOT - HOUR))[1]["verdict"] == "misfire"
    assert house.story(ENTRY_NAME, iso(SLOT - 1800))[1]["verdict"] == "not a slot"


def test_a_removed_entry_is_known_by_what_kafka_still_holds(house: House) -> None:
    definition = Definition(
        task="t", schedule="*/10 * * * *", since=SLOT - 9000, changes=(Change(at=SLOT - 9000, by="ada", what="added"),)
    )
    house.defined(ENTRY, "gone", encode_definition(definition), -9000)
    house.defined(ENTRY, "gone", None, -60)
    house.leads("beat1", -HOUR, HOUR)
    status, found = house.story("gone", iso(SLOT))
    assert (status, found["verdict"]) == (1, "removed")
    assert iso(SLOT - 60)[11:19] in found["summary"]


def test_an_entry_that_never_was_is_an_error_with_the_nearest_name(house: House) -> None:
    done = house.run("reprot")
    assert (done.exit_code, "did you mean 'report'?" in done.output) == (1, True)


def test_the_schedule_of_the_time_of_the_slot_counts(house: House) -> None:
    """Not the present one."""
    change = Change(at=SLOT + 60, by="ada", what="changed schedule 0 * * * * -> 30 * * * *")
    added = Change(at=SLOT - 9000, by="ada", what="added")
    definition = Definition(task="t", schedule="30 * * * *", since=SLOT + 60, changes=(added, change))
    house.defined(ENTRY, "moved", encode_definition(definition), 60)
    house.leads("beat1", -HOUR, HOUR)
    _, found = house.story("moved", iso(SLOT))
    assert found["verdict"] == "changed later"
    _, found = house.story("moved", iso(SLOT - 1800))
    assert found["verdict"] == "not a slot"
    house.happened(sent(entry="moved"))
    assert house.story("moved", iso(SLOT))[0] == 0


def test_the_role_of_the_entrys_shard_counts(kafka: EmbeddedKafka) -> None:
    """Another role had a leader all the time."""
    house = House(kafka, neli_shards=2)
    own = owner(ENTRY_NAME, 2)
    house.leads("beat1", -HOUR, HOUR, role=1 - own)
    house.leads("beat2", -HOUR, -1800, role=own, marks=SLOT - HOUR)
    status, found = house.story(ENTRY_NAME, iso(SLOT))
    assert (status, found["verdict"]) == (1, "no leader")
    assert f"no member led role {house.config.roles[own]} from" in found["summary"]
    house.close()


def test_celerys_own_scheduler_runs_a_little_later_than_the_slot(kafka: EmbeddedKafka) -> None:
    house = House(kafka, neli_scheduler="celery.beat.PersistentScheduler")
    house.happened(sent(SLOT + 0.4, 0.01))
    status, found = house.story(ENTRY_NAME, iso(SLOT))
    assert (status, found["verdict"], found["slot"]) == (0, "sent", SLOT)
    house.close()


def test_without_a_history_topic_it_says_so(kafka: EmbeddedKafka) -> None:
    house = House(kafka, neli_history=False)
    kafka.delete_topic(house.config.history_topic)
    house.leads("beat1", -HOUR, HOUR)
    house.state(-HOUR, 1, -HOUR)
    house.state(0, 2, 0.1)
    status, found = house.story(ENTRY_NAME, iso(SLOT))
    assert (status, found["verdict"]) == (0, "sent")
    assert "neli_history = False" in " ".join(found["unknown"])
    house.close()


def test_a_pause_is_told_with_its_author(house: House) -> None:
    house.leads("beat1", -HOUR, 2 * HOUR)
    periodic.pause(house.app, ENTRY_NAME, by="ada")
    now = time.time()
    house.app.conf.beat_schedule[ENTRY_NAME]["schedule"] = 1.0
    house.defined(STATE, ENTRY_NAME, encode_state(State(now - 60, 5, 1)), now - SLOT)
    time.sleep(1.1)
    status, found = house.story(ENTRY_NAME)
    assert (status, found["verdict"]) == (1, "paused")
    assert "by ada" in found["summary"]


@pytest.mark.parametrize("arguments", [(), (ENTRY_NAME, "yestermorning"), (ENTRY_NAME, "07:00", "more")])
def test_usage(house: House, arguments: tuple[str, ...]) -> None:
    assert house.run(*arguments).exit_code == 2
