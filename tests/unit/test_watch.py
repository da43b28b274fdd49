"""`celery neli watch`: what is news, what the views show, and that Kafka may be away."""

from __future__ import annotations

import io
import sys
import time
from contextlib import closing
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from confluent_kafka import Producer
from rich.console import Console

from celery_neli.cli import neli
from celery_neli.config import from_app
from celery_neli.election.records import Record, encode
from celery_neli.embedded import EmbeddedKafka
from celery_neli.explain.words import Words
from celery_neli.history.records import RunRecord, SlotRecord, key_of, partition_of
from celery_neli.history.records import encode as encode_history
from celery_neli.history.runs import Run
from celery_neli.timeline import Term
from celery_neli.watch import plain
from celery_neli.watch.live import page
from celery_neli.watch.model import MemberView, News, RoleView, Snapshot, TermNews, Upcoming, role_line, run_line
from celery_neli.watch.plain import watch_plainly
from celery_neli.watch.watcher import Watcher, quiet_logger
from tests.unit.schedulers import make_app

if TYPE_CHECKING:
    from collections.abc import Iterator

T = 1_700_000_000.0


def term(number: int, leader: str, began: float, ended: float | None = None, **more: Any) -> Term:
    end = more.pop("end", "lives" if ended is None else "expired")
    over = None if ended is None else T + ended
    return Term(
        role="leader", term=number, leader=leader, member=f"{leader}/1", began=T + began, ended=over, end=end,
        heard=T + began, lease=4.0, **more,
    )  # fmt: skip


def texts(news: list[News]) -> list[str]:
    return [each.text for each in news]


def test_what_was_there_at_the_start_is_no_news() -> None:
    watched = TermNews("beat")
    assert watched.of({"leader": [term(1, "a", 0, 5), term(9, "b", 6)]}) == []
    assert watched.of({"leader": [term(1, "a", 0, 5), term(9, "b", 6)]}) == []


def test_a_handover_is_news_once_and_in_order() -> None:
    watched = TermNews("beat")
    watched.of({"leader": [term(1, "a", 0)]})
    ended = term(1, "a", 0, 5, end="handed over", asked_by="request", asked_for="b")
    after = {"leader": [ended, term(9, "b", 5.2, gap=0.2)]}
    assert texts(watched.of(after)) == [
        "beat role leader: term 1 of a ended: handed over for b, as an operator had asked",
        "beat role leader: term 9 of b began, after 0.2 s without a leader",
    ]
    assert watched.of(after) == []


def test_a_lease_that_runs_out_is_news_before_another_member_leads() -> None:
    watched = TermNews("beat")
    watched.of({"leader": [term(1, "a", 0)]})
    assert texts(watched.of({"leader": [term(1, "a", 0, 4)]})) == [
        "beat role leader: term 1 of a ended: its lease of 4.0 s ran out"
    ]


def test_a_role_in_one_line() -> None:
    living = RoleView(election="beat", role="leader", term=term(9, "b\x1b", 6), left=3.25)
    assert role_line(living) == "beat role leader: b\\x1b leads, term 9, lease left 3.2 s"
    over = RoleView(election="beat", role="leader", term=term(9, "b", 6, 8))
    assert role_line(over) == "beat role leader: NO LEADER: term 9 of b ended: its lease of 4.0 s ran out"
    assert "no member has led yet" in role_line(RoleView(election="beat", role="leader", term=None))


def test_a_run_in_one_line() -> None:
    run = Run(entry="e", slot=T, outcome="sent", at=T + 4, in_doubt="send", state="failed", worker="w@h", error="E\nx")
    assert run_line(run) == "failed, was in doubt, 4.0 s late, on w@h, E\\nx"
    assert run_line(Run(entry="e", slot=T, outcome="skipped", policy="misfire", count=3)) == (
        "skipped, policy misfire, 3 slots"
    )


def shown(snapshot: Snapshot, news: list[News], *, width: int = 120, height: int = 40) -> str:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=False)
    console.print(page(snapshot, news, Words(), height=height))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def full() -> Snapshot:
    return Snapshot(
        at=T + 10,
        roles=[
            RoleView(election="beat", role="leader", term=term(9, "b", 6, gap=0.2), left=3.2),
            RoleView(election="worker", role="indexer", term=term(2, "w", 0, 4)),
        ],
        members=[
            MemberView(election="beat", name="b", host="/10.0.0.1", leads=["leader"]),
            MemberView(election="beat", name="dead[bold]", answers=False),
        ],
        last=[Run(entry=f"entry-{number}", slot=T + number, outcome="sent", at=T + number) for number in range(10)],
        upcoming=[
            Upcoming(entry="next", slot=T + 15, due=T + 15),
            Upcoming(entry="late", slot=T - 60, due=T - 60),
            Upcoming(entry="jittered", slot=T - 60, due=T + 16),
        ],
        problems=[],
    )


def test_the_page_shows_roles_members_handovers_and_slots() -> None:
    text = shown(full(), [News(T + 5, "beat role leader: term 9 of b began")], width=160)
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "beat leader b 9 2023-11-14 22:13:26.000 (4.0 s) 3.2 s 0.2 s" in rows
    assert any(row.startswith("worker indexer NO LEADER (w: its lease of 4.0 s ran out)") for row in rows)
    assert "beat b /10.0.0.1 leader" in rows
    assert "beat dead[bold] does not answer" in rows  # and it is no markup
    assert "2023-11-14 22:13:25.000 beat role leader: term 9 of b began" in rows
    assert "2023-11-14 22:13:35.000 5.0 s next" in rows
    assert "2023-11-14 22:12:20.000 due 1 min 10 s ago late" in rows
    assert "2023-11-14 22:12:20.000 6.0 s jittered" in rows  # by the slot's name, and when it is due
    assert any(row.startswith("2023-11-14 22:13:20.000 entry-0 sent") for row in rows)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 12), (200, 60)])
def test_the_page_fits_into_the_terminal(width: int, height: int) -> None:
    """At 80 by 24 nothing is cut off below; what is too wide ends in an ellipsis."""
    lines = shown(full(), [News(T, "x" * 300)] * 50, width=width, height=height).splitlines()
    assert max(map(len, lines)) <= width
    if height >= 24:
        assert len(lines) <= height


# On an embedded Kafka


class Election:
    """The leader topic of an app's beats, written by hand."""

    def __init__(self, kafka: EmbeddedKafka) -> None:
        self.kafka = kafka
        self.app = make_app(neli_group="g", neli_kafka=kafka.bootstrap_servers, neli_scheduler=None, neli_name="asker")
        self.config = from_app(self.app, "beat")
        self._end = 0

    def claims(self, member: str) -> None:
        if not self._end:
            self.kafka.create_topic(self.config.topic)
        record = Record(kind="claim", member=f"{member}/1", seq=1, lease=60.0, seen=self._end - 1)
        producer = Producer({"bootstrap.servers": self.kafka.bootstrap_servers})
        producer.produce(self.config.topic, encode(record), b"leader", partition=0)
        assert producer.flush(20) == 0
        producer.close()
        self._end += 1

    def tells(self, record: RunRecord | SlotRecord) -> None:
        producer = Producer({"bootstrap.servers": self.kafka.bootstrap_servers})
        key = key_of(record)
        producer.produce(self.config.history_topic, encode_history(record), key, partition=partition_of(key))
        assert producer.flush(20) == 0
        producer.close()


@pytest.fixture
def election() -> Iterator[Election]:
    with EmbeddedKafka() as kafka:
        yield Election(kafka)


class Enough(Exception):
    """Ends a watch."""


def lines_of_watch(election: Election, steps: dict[str, Any], last: str, timeout: float = 40.0) -> list[str]:
    """What a plain watch prints until a line holds `last`; a line that holds a key of `steps` calls its value."""
    lines: list[str] = []
    end = time.monotonic() + timeout

    def say(line: str) -> None:
        lines.append(line)
        for text in [text for text in steps if text in line]:
            steps.pop(text)()
        if last in line:
            raise Enough

    watcher = Watcher(election.app, log=quiet_logger())
    poll = watcher.poll

    def limited(seconds: float) -> Any:
        assert time.monotonic() < end, lines
        return poll(seconds)

    watcher.poll = limited  # type: ignore[method-assign]
    with closing(watcher), pytest.raises(Enough):
        watch_plainly(watcher, say)
    return lines


def test_a_watch_sees_the_topic_made_and_a_handover(election: Election) -> None:
    lines = lines_of_watch(
        election,
        {"no leader topic was found yet": lambda: election.claims("a"), "of a began": lambda: election.claims("b")},
        "of b began",
    )
    assert any("beat role leader: term 0 of a began" in each for each in lines)
    assert any("term 0 of a ended: another member claimed the role" in each for each in lines)


def test_a_run_is_told_once_although_a_beat_and_a_worker_tell_of_it(election: Election) -> None:
    """The beat's record may come after the worker's, which says more already."""
    what: dict[str, Any] = {"entry": "tick", "task": "t", "slot": time.time(), "id": "i"}
    now = what["slot"]
    ran = RunRecord(**what, state="succeeded", at=now + 0.1, worker="w", runtime=0.05)
    sent = SlotRecord(**what, outcome="sent", at=now + 0.01, member="a")
    other = RunRecord(**{**what, "id": "j", "slot": now + 1}, state="started", at=now + 1, worker="w")
    election.claims("a")
    election.kafka.create_topic(election.config.history_topic, partitions=4)
    records = iter((sent, other))
    lines = lines_of_watch(
        election,
        {
            "a leads": lambda: election.tells(ran),
            "succeeded": lambda: [election.tells(each) for each in records],
        },
        "started",
    )
    assert sum("succeeded" in line for line in lines) == 1, lines


def test_a_watch_says_that_kafka_is_away_and_goes_on(election: Election) -> None:
    """It says so once, and what happened meanwhile when Kafka is back."""
    election.claims("a")

    def back() -> None:
        election.kafka.broker_up()
        election.claims("b")

    steps = {"beat role leader: a leads": election.kafka.broker_down, "nothing can be read, the watch goes on": back}
    lines = lines_of_watch(election, steps, "of b began")
    assert sum("nothing can be read" in each for each in lines) == 1
    assert any("Kafka answers again" in each for each in lines)


def test_the_command_ends_on_ctrl_c_with_status_0(election: Election, monkeypatch: pytest.MonkeyPatch) -> None:
    election.claims("a")

    def interrupted(watcher: Watcher, say: Any, zone: Any) -> None:
        say("begun")
        raise KeyboardInterrupt

    monkeypatch.setattr(plain, "watch_plainly", interrupted)
    done = CliRunner().invoke(neli, ["watch"], obj=SimpleNamespace(app=election.app))
    assert (done.exit_code, done.output) == (0, "begun\n")


def test_without_rich_a_terminal_gets_lines_and_a_note(election: Election, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which names the extra."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def interrupted(watcher: Watcher, say: Any, zone: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(plain, "watch_plainly", interrupted)
    monkeypatch.delitem(sys.modules, "celery_neli.watch.live")
    monkeypatch.setitem(sys.modules, "rich.live", None)
    terminal, errors = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", errors)
    with pytest.raises(SystemExit) as end:
        neli.main(["watch"], obj=SimpleNamespace(app=election.app), prog_name="neli")
    assert end.value.code == 0
    assert 'pip install "celery-neli[watch]"' in errors.getvalue()
