"""A backfill against an embedded Kafka and a broker in memory: what it sends, recognises, refuses and records."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner
from kombu import Producer

import celery_neli.cli  # noqa: F401 - it adds the command
from celery_neli import periodic
from celery_neli.backfill import api, sending, span
from celery_neli.backfill.api import Job
from celery_neli.backfill.sending import Broker, Doubtful, Unsent
from celery_neli.config import from_app
from celery_neli.election.records import Record as ElectionRecord
from celery_neli.election.records import encode as encode_election
from celery_neli.embedded import EmbeddedKafka
from celery_neli.exceptions import ConfigurationError, NeliError
from celery_neli.explain.gather import spans
from celery_neli.history.entry_log import EntryLog
from celery_neli.history.records import Record, RunRecord, SlotRecord, encode, key_of, partition_of
from celery_neli.history.runs import Run
from celery_neli.kafka.client_log import ClientLog
from celery_neli.kafka.properties import history_producer_properties
from celery_neli.kafka.writer import Writer
from celery_neli.periodic.cli import schedule
from celery_neli.schedule.slots import id_at
from celery_neli.schedule_topic.codec import STATE, State, encode_state
from celery_neli.schedule_topic.topic import write

LOG = logging.getLogger("celery_neli.test")
NUMBERS = count()
HOUR = timedelta(hours=1)
#: Twelve slots of "hourly" in the past; all is settled there.
END = datetime.now(timezone.utc).replace(minute=0, second=0, microsecond=0) - HOUR
START = END - 11 * HOUR
SLOTS = [START + number * HOUR for number in range(12)]


class Site:
    """An app with its topics: a beat leads, and has settled all."""

    def __init__(self, kafka: EmbeddedKafka, group: str, *, history: bool = True) -> None:
        self.app = Celery("test", broker=f"memory://{group}", set_as_current=False)
        self.app.conf.update(
            neli_group=group, neli_kafka=kafka.bootstrap_servers, result_expires=None, task_default_queue=group,
            beat_schedule={
                "hourly": {"task": "t", "schedule": "0 * * * *", "options": {"expires": 60, "priority": 3}},
                "new": {"task": "t", "schedule": "0 * * * *"},
                "own-id": {"task": "t", "schedule": "0 * * * *", "options": {"task_id": "x"}},
                "interval": {"task": "t", "schedule": 3600.0},
            },
        )  # fmt: skip
        self.config = from_app(self.app, "beat")
        kafka.create_topic(self.config.topic, partitions=1)
        if history:
            kafka.create_topic(self.config.history_topic, partitions=4)
        self.lead()
        state = encode_state(State(END.timestamp(), 5, 1))
        write(self.config, [(STATE, name, state) for name in ("hourly", "own-id", "interval")], log=LOG)

    def lead(self, *, lease: float = 300.0, settled: float | None = None, term: bool = True) -> None:
        now = time.time()
        claim = ElectionRecord(kind="claim", member="beat/1", seq=0, lease=lease, seen=-1)
        marks = {"claimed": now, "done": now if settled is None else settled}
        beat = ElectionRecord(kind="beat", member="beat/1", seq=1, lease=lease, seen=0, term=0, data=marks)
        self.append(self.config.topic, [(0, b"leader", encode_election(each)) for each in (claim, beat)[not term :]])

    def append(self, topic: str, records: list[tuple[int, bytes, bytes]]) -> None:
        log = ClientLog(LOG, self.config.properties)
        with closing(Writer(self.config, log, topic, history_producer_properties(self.config))) as writer:
            assert not writer.send_all(records, 10.0)

    def history(self, *records: Record) -> None:
        made = [(partition_of(key_of(each)), key_of(each), encode(each)) for each in records]
        self.append(self.config.history_topic, made)

    def told(self, slot: datetime, outcome: str, **more: Any) -> None:
        at = slot.timestamp()
        given = {"entry": "hourly", "task": "t", "slot": at, "at": at + 1, "member": "beat"}
        self.history(SlotRecord(outcome=outcome, **{**given, **more}))

    def backfill(self, name: str = "hourly", start: datetime = START, end: datetime = END, **more: Any) -> list[Any]:
        given = {"rate": 1000.0, "force": True}
        return periodic.backfill(self.app, name, start, end, **{**given, **more})

    def messages(self) -> list[Any]:
        """Take what the task broker has."""
        with self.app.connection_for_read() as connection:
            queue = connection.SimpleQueue(self.app.conf.task_default_queue)
            found = []
            while True:
                try:
                    message = queue.get(block=False)
                except queue.Empty:
                    return found
                message.ack()
                found.append(message)

    def id(self, slot: datetime) -> str:
        return id_at(self.config.group, "hourly", slot.timestamp())

    def run(self, *arguments: str, code: int, input: str | None = None) -> Any:  # noqa: A002
        given = ("backfill", *arguments)
        found = CliRunner().invoke(schedule, given, obj=SimpleNamespace(app=self.app), input=input)
        assert found.exit_code == code, found.output
        return found


@pytest.fixture(scope="module")
def kafka() -> Iterator[EmbeddedKafka]:
    with EmbeddedKafka() as found:
        yield found


@pytest.fixture
def site(kafka: EmbeddedKafka) -> Site:
    return Site(kafka, f"group-{next(NUMBERS)}")


def actions(found: list[Any]) -> list[str]:
    return [each.action for each in found]


def test_each_slot_is_sent_once_with_its_own_id(site: Site) -> None:
    """As a beat sends it, but for the term; the second backfill recognises all, and `runs` shows them."""
    found = site.backfill()
    assert [each.slot for each in found] == SLOTS
    assert actions(found) == ["sent"] * 12
    messages = site.messages()
    assert [each.headers["id"] for each in messages] == [site.id(each) for each in SLOTS]
    headers = messages[0].headers
    assert headers["neli_beat_entry"] == headers["periodic_task_name"] == "hourly"
    assert headers["neli_beat_slot"] == START.isoformat()
    assert "neli_beat_term" not in headers
    assert messages[0].properties["priority"] == 3
    # It expires counted from now, or it would never run.
    assert datetime.fromisoformat(headers["expires"]) > datetime.now(timezone.utc)
    again = site.backfill()
    assert actions(again) == ["skipped"] * 12
    assert "by a backfill of" in again[0].note
    assert site.messages() == []
    runs = periodic.runs(site.app, "hourly")
    assert [(run.outcome, run.policy) for run in runs if run.slot] == [("sent", "backfill")] * 12


def test_a_dry_run_writes_and_sends_nothing(site: Site) -> None:
    """It says what would be done."""
    before = len(periodic.runs(site.app))
    assert actions(site.backfill(dry_run=True)) == ["send"] * 12
    assert len(periodic.runs(site.app)) == before
    assert site.messages() == []


def test_what_ran_is_recognised_and_what_is_in_doubt_is_named(site: Site) -> None:
    """By what beats and workers told; what a policy left out is sent."""
    site.told(SLOTS[0], "sent")
    site.told(SLOTS[1], "skipped", policy="misfire")
    site.told(SLOTS[4], "in_doubt", policy="skip", first=SLOTS[3].timestamp(), count=2)
    at = SLOTS[5].timestamp()
    site.history(RunRecord(entry="hourly", task="t", slot=at, id="i", state="failed", at=at, worker="w"))
    site.told(SLOTS[6], "sending", attempt="abc", member="ada@host", policy="backfill")
    found = site.backfill(dry_run=True)
    expected = ["skipped", "send", "send", "skipped", "skipped", "skipped", "skipped", *["send"] * 5]
    assert actions(found) == expected
    assert "misfire" in found[1].note
    assert found[4].note.startswith("in doubt: beat found it so")
    assert "failed" in found[5].note
    assert found[6].note.startswith("in doubt: a backfill by ada@host began to send it")
    assert actions(site.backfill(dry_run=True, in_doubt="send"))[3:7] == ["send", "send", "skipped", "send"]
    assert actions(site.backfill(in_doubt="send"))[3:7] == ["sent", "sent", "skipped", "sent"]
    assert len(site.messages()) == 10


def test_the_last_slots_of_a_leader_that_was_killed_are_in_doubt(kafka: EmbeddedKafka) -> None:
    """Its last records may not have reached the history."""
    site = Site(kafka, "killed")
    site.app.conf.beat_schedule["often"] = {"task": "t", "schedule": "* * * * * *"}
    write(site.config, [(STATE, "often", encode_state(State(time.time(), 5, 1)))], log=LOG)
    marks = {"claimed": 1, "done": 1}
    last = ElectionRecord(kind="beat", member="beat/1", seq=2, lease=0.5, seen=1, term=0, data=marks)
    killed = time.time()
    site.append(site.config.topic, [(0, b"leader", encode_election(last))])
    time.sleep(1.0)
    end = datetime.fromtimestamp(killed, timezone.utc).replace(microsecond=0)
    found = site.backfill("often", end - timedelta(seconds=9), end, dry_run=True)
    assert {each.action for each in found[:3]} == {"send"}
    assert found[-1].action == "skipped"
    assert "ended without a word" in found[-1].note


@pytest.mark.parametrize(
    ("name", "given", "error"),
    [
        ("hourly", {"end": datetime.now(timezone.utc) + HOUR}, "end = .*is in the future"),
        ("hourly", {"start": END, "end": START}, "start = .*is after end"),
        ("hourly", {"start": 5}, "start = 5: give a datetime"),
        ("hourly", {"limit": 5}, r"more than 5 slots .*--limit"),
        ("hourly", {"limit": 0}, "limit = 0: give"),
        ("hourly", {"rate": 0}, "rate = 0: give"),
        ("hourly", {"in_doubt": "x"}, "in_doubt = 'x': give one of send, skip"),
        ("hourly", {"sequential": True}, "sequential: results of .* are not kept"),
        ("own-id", {}, "its options name a task_id"),
        ("new", {}, "no beat has taken up this entry yet"),
        ("other", {}, "there is no entry 'other'"),
    ],
)
def test_what_is_refused_names_what_is_wrong(site: Site, name: str, given: dict[str, Any], error: str) -> None:
    """In one line; nothing is sent."""
    with pytest.raises((ConfigurationError, NeliError), match=error) as caught:
        site.backfill(name, **given)
    assert "\n" not in str(caught.value)
    assert site.messages() == []


def test_slots_that_a_beat_may_send_yet_are_refused(site: Site) -> None:
    """Those after the leader's watermark; of an entry that is open, those after its last."""
    site.lead(settled=SLOTS[5].timestamp(), term=False)
    write(site.config, [(STATE, "hourly", encode_state(State(SLOTS[3].timestamp(), 5, 1)))], log=LOG)
    with pytest.raises(NeliError, match=r"6 slots from .* the leading beat may send it yet"):
        site.backfill()
    assert actions(site.backfill(end=SLOTS[5], dry_run=True)) == ["send"] * 6
    write(site.config, [(STATE, "hourly", encode_state(State(SLOTS[3].timestamp(), 5, 1, open=True)))], log=LOG)
    with pytest.raises(NeliError, match=r"2 slots from .* the leading beat tries it again"):
        site.backfill(end=SLOTS[5])
    assert site.messages() == []


def test_a_history_that_does_not_reach_back_is_not_taken_for_an_answer(site: Site) -> None:
    """Only --force sends slots of which it is not known if they ran; those of which is known are no reason."""
    with pytest.raises(NeliError, match=r"the history begins at .* of 12 slots .* --force"):
        site.backfill(force=False)
    for each in SLOTS:
        site.told(each, "sent")
    assert actions(site.backfill(force=False)) == ["skipped"] * 12
    site.app.conf.neli_history = False
    with pytest.raises(ConfigurationError, match=r"neli_history = False: .*--force"):
        site.backfill(force=False)
    assert site.messages() == []


def test_slots_from_before_a_runtime_entry_was_put_need_no_force(site: Site) -> None:
    """No beat can have sent them; it is said."""
    periodic.put(site.app, "late", "t", "0 * * * *")
    with closing(
        Job(
            site.app, "late", START, END, in_doubt="skip", limit=99, rate=9.0, sequential=False, force=False, by=None
        )
    ) as job:  # fmt: skip
        assert actions(job.plan.slots) == ["send"] * 12
        assert any("12 slots from before the entry was put" in each for each in job.plan.notes)


def test_slots_of_an_interval_count_from_its_last_run(site: Site) -> None:
    """Also those before it."""
    found = site.backfill("interval", START + timedelta(minutes=10), END, dry_run=True)
    assert [each.slot for each in found] == SLOTS[1:]


class Faulty(Broker):
    """Fails with the third message, as told."""

    error: Exception
    sent = 0

    def send(self, slot: Any) -> None:
        type(self).sent += 1
        if type(self).sent == 3:
            raise self.error
        super().send(slot)


@pytest.mark.parametrize(
    ("error", "first", "second"),
    [
        (Unsent("refused", away=False), ["sent", "sent", "failed", "sent"], ["skipped", "skipped", "sent", "skipped"]),
        (Unsent("gone", away=True), ["sent", "sent", "failed", "left"], ["skipped", "skipped", "sent", "sent"]),
        (Doubtful("cut"), ["sent", "sent", "in doubt", "left"], ["skipped", "skipped", "skipped", "sent"]),
        (KeyboardInterrupt(), None, ["skipped", "skipped", "skipped", "sent"]),
    ],
)
def test_what_failed_is_sent_by_the_next_and_what_may_have_left_is_not(
    site: Site, monkeypatch: pytest.MonkeyPatch, error: Any, first: list[str] | None, second: list[str]
) -> None:
    """A broker that is away ends it; a process that is killed leaves one slot in doubt."""
    with monkeypatch.context() as patch:
        Faulty.error, Faulty.sent = error, 0
        patch.setattr(sending, "Broker", Faulty)
        if first is None:
            with pytest.raises(KeyboardInterrupt):
                site.backfill(end=SLOTS[3])
        else:
            assert actions(site.backfill(end=SLOTS[3])) == first
    found = site.backfill(end=SLOTS[3])
    assert actions(found) == second
    ids = [each.headers["id"] for each in site.messages()]
    assert len(ids) == len(set(ids)) == (4 if "sent" in second[2] else 3)


def test_a_process_that_is_killed_after_it_sent_leaves_a_slot_in_doubt(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its message left, and nothing says so: no other backfill sends it by itself."""
    append = EntryLog.append

    def die(log: EntryLog, record: SlotRecord) -> None:
        if record.outcome == "sent":
            raise KeyboardInterrupt
        append(log, record)

    monkeypatch.setattr(EntryLog, "append", die)
    with pytest.raises(KeyboardInterrupt):
        site.backfill(end=SLOTS[1])
    monkeypatch.undo()
    found = site.backfill(end=SLOTS[1])
    assert actions(found) == ["skipped", "sent"]
    assert found[0].note.startswith("in doubt: a backfill by")
    assert [each.headers["id"] for each in site.messages()] == [site.id(each) for each in SLOTS[:2]]


def test_a_transport_that_fails_while_it_sends_leaves_the_slot_in_doubt(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message may have left; what fails before it was given to the transport has not."""

    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("cut")

    with monkeypatch.context() as patch:
        patch.setattr(Producer, "_publish", fail)
        found = site.backfill(end=SLOTS[1])
    assert actions(found) == ["in doubt", "left"]
    assert "the task broker failed while it was sent: ConnectionError: cut" in found[0].note
    with monkeypatch.context() as patch:
        patch.setattr(Producer, "_prepare", lambda *_, **__: 1 / 0)
        assert actions(site.backfill(end=SLOTS[2])) == ["skipped", "failed", "failed"]
    assert actions(site.backfill(end=SLOTS[2])) == ["skipped", "sent", "sent"]


def test_a_broker_that_is_away_leaves_all_to_the_same_command(site: Site) -> None:
    """Nothing is in doubt then."""
    there, site.app.conf.broker_url = site.app.conf.broker_url, "redis://localhost:1//"
    span = ("hourly", "--from", START.isoformat(), "--to", SLOTS[1].isoformat(), "--force", "--yes")
    shown = site.run(*span, code=1).output
    assert "hourly: 2 left" in shown
    assert len([line for line in shown.splitlines() if line.startswith("note: the task broker cannot be reached")]) == 1
    assert "the same command continues" in shown
    site.app.conf.broker_url = there
    assert "hourly: 2 sent" in site.run(*span, code=0).output


def test_an_attempt_that_came_second_leaves_no_doubt(site: Site) -> None:
    """What became of the slot is what the first one tells."""
    more: Any = {"in_doubt": "skip", "limit": 99, "rate": 1000.0, "sequential": False, "force": True, "by": None}
    with closing(Job(site.app, "hourly", START, START, **more)) as job:
        site.told(START, "sending", attempt="abc", member="ada@host", policy="backfill")
        (done,) = job.run()
    assert (done.action, done.note) == ("skipped", "another process was faster: ada@host")
    assert site.messages() == []
    site.told(START, "failed", attempt="abc", member="ada@host", policy="backfill")
    assert [run.outcome for run in periodic.runs(site.app, "hourly")] == ["failed"]


def test_of_two_backfills_at_once_one_sends_a_slot(site: Site) -> None:
    """Both have made their plan before either begins; what the broker got is what counts."""
    more: Any = {"in_doubt": "skip", "limit": 99, "rate": 1000.0, "sequential": False, "force": True}
    jobs = [Job(site.app, "hourly", START, END, by=name, **more) for name in ("ada", "bob", "cy")]
    results: dict[int, list[Any]] = {}
    threads = [
        threading.Thread(target=lambda place=place, job=job: results.update({place: job.run()}))
        for place, job in enumerate(jobs)
    ]  # fmt: skip
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    for job in jobs:
        job.close()
    assert len(results) == 3
    assert sorted(each.headers["id"] for each in site.messages()) == sorted(map(site.id, SLOTS))
    for place in range(12):
        assert sorted(actions([results[each][place] for each in results])) == ["sent", "skipped", "skipped"]
    assert {run.outcome for run in periodic.runs(site.app, "hourly")} == {"sent"}
    assert actions(site.backfill()) == ["skipped"] * 12


def test_a_result_in_the_backend_is_recognised_and_waited_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has a result is not sent again; --sequential waits for each."""
    states = {site.id(SLOTS[0]): ["SUCCESS"], site.id(SLOTS[1]): ["PENDING", "STARTED", "SUCCESS"]}
    asked: list[str] = []

    def ask(id_: str) -> str:
        asked.append(id_)
        return states[id_].pop(0) if len(states[id_]) > 1 else states[id_][0]

    monkeypatch.setattr(sending, "POLL", 0.01)
    monkeypatch.setattr("celery_neli.backfill.plan.state_asker", lambda *_: ask)
    monkeypatch.setattr(sending, "state_asker", lambda *_: ask)
    found = site.backfill(end=SLOTS[1], sequential=True)
    assert actions(found) == ["skipped", "sent"]
    assert [each.note for each in found] == ["the result backend has its result: SUCCESS", "its task: SUCCESS"]
    assert len(asked) == 4


def test_the_command_shows_asks_and_sends(site: Site) -> None:
    """Times, exit statuses, JSON; without an answer nothing is sent."""
    span = ("hourly", "--from", START.isoformat(), "--to", END.isoformat(), "--force", "--rate", "1000")
    shown = site.run(*span, "--dry-run", code=0).output
    assert f"{START:%Y-%m-%d %H:%M:%S}Z" in shown
    assert "hourly: 12 to send (dry run)" in shown
    assert site.run(*span, code=1, input="n\n").output.count("send 12 tasks now?") == 1
    assert site.messages() == []
    site.told(SLOTS[0], "sending", attempt="abc", member="ada\x1b[2J", policy="backfill")
    shown = site.run(*span, "--yes", code=1).output
    assert "hourly: 11 sent, 1 skipped" in shown
    assert "--in-doubt send sends them" in shown
    assert "\x1b" not in shown
    done = json.loads(site.run(*span, "--yes", "--json", "--in-doubt", "send", code=0).stdout)
    assert [each["action"] for each in done["slots"]] == ["sent", *["skipped"] * 11]
    assert "hourly: 12 skipped" in site.run(*span, "--yes", code=0).output
    assert len(site.messages()) == 12
    assert "--to 'x': say how long ago" in site.run("hourly", "--from", "2h", "--to", "x", code=1).output


def test_a_history_that_cannot_be_written_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless forced, and then it is said that the next backfill does not recognise what this one sent."""

    def refuse(*_: Any) -> None:
        raise NeliError("no right to write")

    monkeypatch.setattr("celery_neli.history.entry_log.EntryLog.open", refuse)
    periodic.put(site.app, "late", "t", "0 * * * *")
    with pytest.raises(NeliError, match=r"no right to write\. So .* --force"):
        site.backfill("late", force=False)
    assert site.messages() == []
    assert actions(site.backfill("late")) == ["sent"] * 12


def test_a_history_topic_that_is_missing_is_made(kafka: EmbeddedKafka) -> None:
    """Nothing is known then, so it must be forced; a dry run makes nothing, and what is sent is recorded."""
    site = Site(kafka, "no-history", history=False)
    with pytest.raises(NeliError, match="there is no history topic: of 12 slots"):
        site.backfill(force=False)
    assert actions(site.backfill(dry_run=True)) == ["send"] * 12
    with pytest.raises(NeliError, match="there is no history topic"):
        periodic.runs(site.app)
    assert actions(site.backfill()) == ["sent"] * 12
    assert actions(site.backfill()) == ["skipped"] * 12
    assert len(site.messages()) == 12


def test_the_commands_of_the_history_show_a_backfill(site: Site) -> None:
    """Who began it, and that a slot may have been sent."""
    site.told(SLOTS[0], "sending", attempt="abc", member="ada@host", policy="backfill")
    site.backfill(end=SLOTS[1], by="bob")
    invoked = CliRunner().invoke(schedule, ("runs", "hourly"), obj=SimpleNamespace(app=site.app))
    assert invoked.exit_code == 0
    assert "sending  -" in invoked.output
    assert "backfill, ada@host: may have been sent" in invoked.output
    assert "backfill, bob" in invoked.output


class Late:
    """A schedule of each hour whose slots are due ten minutes after the time that names them."""

    shift = timedelta(minutes=10)
    tz = timezone.utc


def test_slots_are_named_without_the_shift_of_a_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is due in the span by its name is in it, and nothing else."""

    def following(_: Any, after: datetime) -> datetime:
        hours = (after - START - Late.shift) // HOUR + 1
        return START + Late.shift + hours * HOUR

    monkeypatch.setattr(span, "next_slot", following)
    monkeypatch.setattr(span, "last_run", lambda _, slot: slot)
    assert [*span.slots(Late(), START, START + 2 * HOUR, None)] == SLOTS[:3]
    assert [*span.slots(Late(), START + timedelta(minutes=1), START + 2 * HOUR, None)] == SLOTS[1:3]


def test_slots_that_were_left_out_together_stay_so_when_a_backfill_sends_one() -> None:
    """`explain` takes the first later run for the end of what was left out: not one of a backfill."""
    together = Run(entry="e", slot=60.0, first=60.0, count=3, outcome="skipped", at=300.0)
    sent = Run(entry="e", slot=120.0, outcome="sent", at=900.0, policy="backfill")
    assert spans(together, 180.0, [together, sent])
    assert not spans(together, 180.0, [together, replace(sent, policy="")])


def test_defaults_are_those_that_the_command_shows() -> None:
    """Of the limit and the rate."""
    defaults = {each.name: each.default for each in schedule.commands["backfill"].params}
    assert (defaults["limit"], defaults["rate"]) == (api.LIMIT, api.RATE)
