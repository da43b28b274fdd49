"""What `celery neli status` and `resign` make of the leader topic and the members' notes, on the embedded Kafka."""

from __future__ import annotations

import json
import logging
import shelve
import time
from concurrent.futures import Future
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from celery.beat import ScheduleEntry
from celery.schedules import schedule
from click.testing import CliRunner
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from celery_neli.cli import neli
from celery_neli.config import from_app, owner
from celery_neli.election.records import Record, decode, encode
from celery_neli.embedded import EmbeddedKafka
from celery_neli.exceptions import NeliError
from celery_neli.handover import hand_over
from celery_neli.schedule_topic.codec import MEMBER, STATE, Note, State, encode_note, encode_state
from celery_neli.schedule_topic.topic import write
from celery_neli.status import has_lost, look
from tests.unit.schedulers import make_app

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOG = logging.getLogger("celery_neli.cli")


class Election:
    """A beat election whose records are written by hand; `ago` is in seconds."""

    def __init__(self, kafka: EmbeddedKafka, *, begun: bool = True, **conf: Any) -> None:
        """`begun`: a member has started before, and made the leader topic."""
        self.kafka = kafka
        common = {
            "neli_group": "g",
            "neli_kafka": kafka.bootstrap_servers,
            "neli_scheduler": None,
            "neli_name": "asker",
        }
        self.app = make_app(**{**common, **conf})
        self.config = from_app(self.app, "beat")
        if begun:
            kafka.create_topic(self.config.topic, partitions=len(self.config.roles))
        self._end = 0

    def record(self, kind: Any, member: str, *, ago: float = 0.0, **fields: Any) -> None:
        given: dict[str, Any] = {"seq": self._end + 1, "lease": 4.0, "seen": self._end - 1, **fields}
        producer = Producer({"bootstrap.servers": self.kafka.bootstrap_servers})
        value = encode(Record(kind=kind, member=f"{member}/1", **given))
        at = round((time.time() - ago) * 1000)
        producer.produce(self.config.topic, value, b"leader", partition=0, timestamp=at)
        assert producer.flush(20) == 0
        producer.close()
        self._end += 1

    def note(self, member: str, *, ago: float = 0.0, app: str | None = "test", schedule: str = "0123abcd") -> None:
        note = Note(schedule=schedule, version=None, at=time.time() - ago, app=app)
        write(self.config, [(MEMBER, member, encode_note(note))], log=LOG)

    def look(self) -> Any:
        return look(self.config, "beat", log=LOG, schedules=True)

    def run(self, *arguments: str) -> Any:
        return CliRunner().invoke(neli, arguments, obj=SimpleNamespace(app=self.app), catch_exceptions=False)

    def kinds(self) -> list[str]:
        """The kinds of all records in the topic."""
        reader = Consumer({"bootstrap.servers": self.kafka.bootstrap_servers, "group.id": "reader"})
        try:
            high = reader.get_watermark_offsets(TopicPartition(self.config.topic, 0), timeout=10)[1]
            reader.assign([TopicPartition(self.config.topic, 0, OFFSET_BEGINNING)])
            return [decode(each.value() or b"").kind for each in reader.consume(high, 10)]
        finally:
            reader.close()


@pytest.fixture
def election() -> Iterator[Election]:
    with EmbeddedKafka() as kafka:
        yield Election(kafka)


def test_a_leader_that_was_killed_does_not_answer(election: Election) -> None:
    """Once its lease has run out, whether another has taken over or not."""
    election.record("claim", "killed", ago=60)
    for member in ("killed", "other"):
        election.note(member, ago=61)
    assert list(election.look().gone) == ["killed"]
    assert "killed  schedule 0123abcd  does not answer" in election.run("status").output
    election.record("claim", "other")
    found = election.look()
    assert (found.roles[0].leader, list(found.gone), found.known) == ("other", ["killed"], ["other"])


def test_a_member_that_is_heard_again_answers(election: Election) -> None:
    """It lost its lease, and goes on as a standby: its notes go on."""
    election.record("claim", "slow", ago=60)
    election.record("claim", "other")
    election.note("slow", ago=-1)
    found = election.look()
    assert (found.gone, found.known) == ({}, ["other", "slow"])


def test_a_member_whose_notes_ended_is_not_among_the_known(election: Election) -> None:
    """They come every 15 seconds; the list says when it was heard last."""
    election.record("claim", "leader")
    for member, ago in (("leader", 5.0), ("killed", 90.0), ("buried", 400.0)):
        election.note(member, ago=ago)
    assert election.look().known == ["leader"]
    output = election.run("status").output
    assert "killed  schedule 0123abcd  last heard 9" in output
    assert "buried" not in output


@pytest.mark.parametrize("to", ["stranger", "killed", "a\nb"])
def test_to_hand_over_to_an_unknown_member_is_refused_before_anybody_is_deposed(election: Election, to: str) -> None:
    """The embedded Kafka does not name the group's members: those who wrote of late are known."""
    election.record("claim", "leader")
    election.note("standby")
    election.note("killed", ago=90)
    with pytest.raises(NeliError, match="leader, standby"):
        hand_over(election.config, "beat", role=None, to=to, timeout=5, log=LOG)
    assert election.kinds() == ["claim"]


def test_to_hand_over_to_a_known_member_is_asked(election: Election) -> None:
    """One that has a note."""
    election.record("claim", "leader")
    election.note("standby")
    with pytest.raises(NeliError, match=r"no other member led beat role leader within 0\.1 s"):
        hand_over(election.config, "beat", role=None, to="standby", timeout=0.1, log=LOG)
    assert election.kinds() == ["claim", "request"]


def test_apps_that_share_a_group_are_told_and_fail_the_command(election: Election) -> None:
    """In words and as JSON; of one app, all is well, though schedules differ for a while during a roll-out."""
    election.record("claim", "leader")
    election.note("leader")
    election.note("standby", schedule="89abcdef")
    assert election.run("status").exit_code == 0
    election.note("blog1", app="blog")
    told = election.run("status")
    assert told.exit_code == 1
    assert "different apps share one neli_group (app blog: blog1; app test: leader, standby)" in told.output
    told = election.run("status", "--json")
    assert told.exit_code == 1
    assert "app blog: blog1" in json.loads(told.output)["elections"][0]["sharing"]


def test_commands_say_that_the_election_is_switched_off(election: Election) -> None:
    """What they show is what other processes do."""
    election.record("claim", "leader")
    assert "neli_enabled" not in election.run("status").output
    election.app.conf.neli_enabled = False
    assert "note: neli_enabled = False" in election.run("status").output
    told = election.run("schedule", "add", "e", "shop.tidy", "PT1M")
    assert (told.exit_code, told.output[:27]) == (1, "Error: neli_enabled = False")


# -- what commands on the schedule say when nothing will run --


def test_a_change_says_that_no_beat_leads(election: Election) -> None:
    """It is stored, and runs when there is one; a task that this app does not know is told, too."""
    told = election.run("schedule", "add", "e", "shop.tidy", "PT1M")
    assert told.exit_code == 0
    assert "no beat leads role leader of neli_group = 'g'" in told.output
    assert "this app does not know the task 'shop.tidy'" in told.output
    election.record("claim", "leader")
    for verb in ("pause", "resume"):
        told = election.run("schedule", verb, "e")
        assert (told.exit_code, "no beat leads" in told.output) == (0, False)
    election.note("leader")
    election.note("blog1", app="blog")
    assert "different apps share" in election.run("schedule", "add", "f", "shop.tidy", "PT1M").output


def test_a_change_of_an_entry_whose_shard_has_no_leader_says_so() -> None:
    """The other shard's leader does not run it."""
    with EmbeddedKafka() as kafka:
        election = Election(kafka, neli_shards=2)
        election.record("claim", "leader")  # of role leader
        told = {
            owner(name, 2): "no beat leads role leader-1" in election.run("schedule", "add", name, "t", "PT1M").output
            for name in "abcdef"
        }
    assert told == {0: False, 1: True}


def test_a_change_before_any_beat_has_started_says_so() -> None:
    """There is no leader topic yet."""
    with EmbeddedKafka() as kafka:
        told = Election(kafka, begun=False).run("schedule", "add", "e", "shop.tidy", "PT1M")
    assert told.exit_code == 0
    assert "g.beat.neli does not exist" in told.output


def test_an_import_may_come_before_the_change_of_the_setting(election: Election, tmp_path: Path) -> None:
    """That is the order of a migration; what it brought does not run until then, which it says."""
    path = tmp_path / "celerybeat-schedule"
    with shelve.open(str(path)) as store:  # noqa: S301 - written here
        store["entries"] = {"e": ScheduleEntry("e", "t", schedule=schedule(60), app=election.app)}
    election.app.conf.beat_schedule = {"e": {"task": "t", "schedule": 60.0}}
    election.app.conf.neli_scheduler = "celery.beat.PersistentScheduler"
    told = election.run("schedule", "import", "file", str(path))
    assert "note: neli_scheduler = 'celery.beat.PersistentScheduler'" in told.output


def test_an_entry_that_is_over_is_not_called_active(election: Election) -> None:
    """A one-off stays until it is removed."""
    at = time.strftime("at:%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
    assert "e: active, runtime, next 20" in election.run("schedule", "add", "e", "shop.tidy", at).output
    write(election.config, [(STATE, "e", encode_state(State(time.time() + 3600, 1, 1)))], log=LOG)
    assert "finished, runtime" in election.run("schedule", "list").output


OTHERS = ["celery.beat.Scheduler", "celery.beat.PersistentScheduler"]


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize(
    "arguments",
    [("add", "x", "shop.tidy", "PT1M"), ("pause", "e"), ("resume", "e")],
)
def test_where_another_scheduler_runs_a_change_is_refused(
    election: Election, other: str, arguments: tuple[str, ...]
) -> None:
    """It would never be seen; the line names the setting, its value and the ways out, and nothing is stored."""
    election.run("schedule", "add", "e", "shop.tidy", "PT1M")
    before = election.run("schedule", "list", "--json").output
    election.app.conf.neli_scheduler = other
    told = election.run("schedule", *arguments)
    assert told.exit_code == 1
    assert f"Error: neli_scheduler = '{other}'" in told.output
    assert "Leave neli_scheduler out" in told.output
    assert len(told.output.splitlines()) == 1
    election.app.conf.neli_scheduler = "celery_neli.ReplicatedScheduler"
    assert election.run("schedule", "list", "--json").output == before


def test_where_another_scheduler_runs_what_is_read_says_so(election: Election) -> None:
    """An entry of the runtime schedule has no next slot then, and a problem; it can still be removed."""
    election.run("schedule", "add", "e", "shop.tidy", "PT1M")
    election.app.conf.neli_scheduler = "celery.beat.Scheduler"
    listed = election.run("schedule", "list")
    assert "note: neli_scheduler = 'celery.beat.Scheduler'" in listed.output
    assert "runtime, not run: neli_scheduler" in listed.output
    (entry,) = json.loads(election.run("schedule", "list", "--json").output)
    assert (entry["next"], "not run" in entry["problem"]) == (None, True)
    assert "not run" in election.run("schedule", "show", "e").output
    assert election.run("schedule", "remove", "e").exit_code == 0


def test_the_group_tells_who_has_left_it() -> None:
    """Only once it has answered: then a lease that has run out by the clock need not be watched."""
    described = SimpleNamespace(members=[SimpleNamespace(client_id="there")])
    group: Future[Any] = Future()
    assert not has_lost(group, "gone")
    group.set_result(described)
    assert has_lost(group, "gone")
    assert not has_lost(group, "there")
    refused: Future[Any] = Future()
    refused.set_exception(NeliError("not described"))
    assert not has_lost(refused, "gone")
