"""An ordinary beat does not start beside elected ones, and a misspelt scheduler of ours is one line."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import celery.bin.beat
import click
import pytest
from celery.beat import PersistentScheduler, Scheduler
from celery.bin.base import CLIContext
from celery.utils.dispatch import Signal
from click.testing import CliRunner

import celery_neli.beat.scheduler
import celery_neli.cli
from celery_neli import install
from celery_neli.exceptions import NeliError
from celery_neli.ordinary_beat import OrdinaryBeat, in_one_line, misspelt
from celery_neli.status import ElectionStatus, MemberStatus, RoleStatus
from tests.unit.schedulers import make_app

GROUP: dict[str, Any] = {"neli_group": "g", "neli_kafka": "127.0.0.1:1"}


def found(*, leader: str | None = None, members: list[MemberStatus] | None = None) -> ElectionStatus:
    role = RoleStatus(role="leader", leader=leader)
    return ElectionStatus(
        election="beat", topic="g.beat.neli", group="g.beat", exists=True, roles=[role], members=members
    )


def member(name: str, *, answers: bool = True) -> MemberStatus:
    return MemberStatus(name=name, host="/127.0.0.1", leads=[], induced=[], answers=answers)


ABSENT = ElectionStatus(election="beat", topic="g.beat.neli", group="g.beat", exists=False)


class Kafka:
    """Answers, or raises; counts the questions."""

    def __init__(self, answer: ElectionStatus | NeliError) -> None:
        self.answer, self.asked = answer, 0

    def __call__(self, config: Any) -> ElectionStatus:
        self.asked += 1
        if isinstance(self.answer, NeliError):
            raise self.answer
        return self.answer


class Service:
    """The part of `celery.beat.Service` that is looked at."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler


def beat_starts(watch: OrdinaryBeat, scheduler: Any = Scheduler, **conf: Any) -> None:
    """Send `beat_init` as Celery does when a beat with this scheduler starts."""
    app = make_app(**{**GROUP, **conf})
    beat_init = Signal("beat_init")  # of Celery's kind; its own may have the plug-in connected
    beat_init.connect(watch.on_beat, weak=False)
    beat_init.send(sender=Service(scheduler(app, lazy=True)))


@pytest.mark.parametrize(
    "answer",
    [found(leader="beat1"), found(members=[member("beat1")]), found(leader="beat1", members=[member("beat1")])],
)
def test_an_ordinary_beat_beside_elected_ones_ends_with_one_line(
    answer: ElectionStatus, caplog: pytest.LogCaptureFixture
) -> None:
    """Through Celery's signal, which swallows errors; the line has the scheduler, who runs, and the ways out."""
    with pytest.raises(SystemExit) as ended:
        beat_starts(OrdinaryBeat(Kafka(answer)), PersistentScheduler)
    assert ended.value.code == 1
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.CRITICAL]
    for word in (
        "celery.beat.PersistentScheduler",
        "neli_group = 'g'",
        "(beat1)",
        "--scheduler celery_neli.Scheduler",
        "stop",
    ):
        assert word in line


@pytest.mark.parametrize(
    "answer",
    [
        ABSENT,
        found(),
        found(members=[]),
        found(members=[member("killed", answers=False)]),
    ],
)
def test_without_elected_beats_it_starts_and_warns_of_others_like_it(
    answer: ElectionStatus, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be the only one, beside workers that hold an election; or one of a fleet in which each one sends."""
    kafka = Kafka(answer)
    beat_starts(OrdinaryBeat(kafka))
    assert kafka.asked == 1
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("celery_neli")]
    assert "which takes part in no election: if several such beats run, each of them sends every task" in line
    assert "--scheduler celery_neli.Scheduler" in line


@pytest.mark.parametrize("conf", [{"neli_group": None}, {"neli_enabled": False}])
def test_where_no_election_is_meant_kafka_is_not_asked(conf: dict[str, Any]) -> None:
    """Any other beat of any other project starts as without the plug-in."""
    kafka = Kafka(found(leader="beat1"))
    beat_starts(OrdinaryBeat(kafka), **conf)
    assert kafka.asked == 0


def test_an_elected_beat_is_not_asked_about() -> None:
    """It takes part."""
    kafka = Kafka(found(leader="beat1"))
    beat_starts(OrdinaryBeat(kafka), celery_neli.beat.scheduler.Scheduler)
    assert kafka.asked == 0


def test_if_kafka_does_not_answer_it_starts_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With Kafka's reason; or, if it is silent, after the time that it has."""
    beat_starts(OrdinaryBeat(Kafka(NeliError("Kafka at k:1: no route\nto host"))))
    silence = threading.Event()

    def wait(config: Any) -> ElectionStatus:
        silence.wait(60)
        return found(leader="beat1")

    beat_starts(OrdinaryBeat(wait, patience=0.1))
    silence.set()
    lines = [record.getMessage() for record in caplog.records if record.name == "celery_neli.ordinary_beat"]
    assert len(lines) == 2
    assert "no route\\nto host" in lines[0]
    assert "no answer within 0.1 s" in lines[1]
    assert all("starts" in line for line in lines)


def test_a_setting_that_is_wrong_is_told_and_does_not_end_an_ordinary_beat(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It takes no part in any election."""
    beat_starts(OrdinaryBeat(Kafka(ABSENT)), neli_kafkka="k:1")
    assert "neli_kafkka is not a setting" in caplog.text


def worker_starts(watch: OrdinaryBeat, **options: Any) -> None:
    """As Celery's signal does before a worker is made."""
    celeryd_init = Signal("celeryd_init")
    celeryd_init.connect(watch.on_worker, weak=False)
    app = make_app(**GROUP)
    celeryd_init.send(sender="w", instance=SimpleNamespace(app=app), conf=app.conf, options=options)


def test_a_worker_with_an_ordinary_beat_in_it_is_refused() -> None:
    """`celery worker -B`: it ends before it starts anything, as its beat is a process of its own."""
    with pytest.raises(SystemExit, match=r"--scheduler celery_neli\.Scheduler"):
        worker_starts(OrdinaryBeat(Kafka(found(leader="beat1"))), beat=True, scheduler=None)
    for options in ({"beat": False}, {}, {"beat": True, "scheduler": "celery_neli.Scheduler"}):
        kafka = Kafka(found(leader="beat1"))
        worker_starts(OrdinaryBeat(kafka), **options)
        assert kafka.asked == 0
    kafka = Kafka(ABSENT)
    watch = OrdinaryBeat(kafka)
    worker_starts(watch, beat=True)
    beat_starts(watch)  # in the process that is forked for it
    assert kafka.asked == 1


@pytest.mark.parametrize(
    ("scheduler", "words"),
    [
        ("celery_neli.Scheduler", "neli_misfire = 'sometimes'"),
        ("celery_neli.ReplicatedScheduler", "by itself takes part in no election"),
    ],
)
def test_a_worker_ends_if_the_elected_beat_in_it_could_not_run(scheduler: str, words: str) -> None:
    """That beat is another process: its end would be a traceback, and the worker would go on without."""
    app = make_app(**GROUP, neli_misfire="sometimes")
    with pytest.raises(SystemExit, match=words):
        OrdinaryBeat(Kafka(ABSENT)).on_worker(SimpleNamespace(app=app), {"beat": True, "scheduler": scheduler})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-S", "celery_neli.ReplicatedScheduler"], "by itself takes part in no election"),
        (["-S", "celery_neli.Scheduler"], "neli_enabled = 0: give True or False"),
    ],
)
def test_what_the_constructor_of_a_scheduler_refuses_ends_beat_with_one_line(arguments: list[str], words: str) -> None:
    """Celery makes one for its banner."""
    app = make_app(**GROUP, **({"neli_enabled": 0} if "neli_enabled" in words else {}))
    done = CliRunner().invoke(celery.bin.beat.beat, arguments, obj=CLIContext(app, no_color=True, workdir=None))
    assert done.exit_code == 1
    (line,) = [each for each in done.output.splitlines() if each.startswith("Error: ")]
    assert words in line


def test_a_command_without_a_terminal_says_in_its_log_file_why_it_ended(tmp_path: Path) -> None:
    """As `celery multi` starts it, which says OK."""
    log = tmp_path / "w1.log"
    environment = {**os.environ, "SMOKE_SETTINGS": json.dumps({**GROUP, "neli_enabled": 0})}
    for arguments in (
        ["worker", "-B", "--scheduler", "celery_neli.Scheduler", "-n", "w1@h", f"--logfile={tmp_path}/%n.log"],
        ["beat", "-S", "celery_neli.Scheduler", f"--logfile={log}"],
    ):
        command = [sys.executable, "-m", "celery", "-A", "tests.smoke.project", *arguments]
        assert subprocess.run(command, env=environment, timeout=120, capture_output=True, check=False).returncode == 1
        (line,) = [each for each in log.read_text().splitlines() if "CRITICAL" in each]
        assert "neli_enabled = 0: give True or False" in line
        log.unlink()


@pytest.mark.parametrize("name", ["CELERY_NELI_GROUP", "celery_neli_group", "NELI_GROUP", "Neli_Group"])
def test_a_group_under_a_name_that_celery_does_not_read_is_told(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """By beats and workers that are ordinary ones for that reason alone."""
    kafka = Kafka(ABSENT)
    beat_starts(OrdinaryBeat(kafka), **{"neli_group": None, name: "g"})
    app = make_app(**{name: "g"})
    installed = install(make_app(**{name: "g"}))
    OrdinaryBeat(kafka).on_worker(SimpleNamespace(app=installed), {})  # it ends with an error that says so
    OrdinaryBeat(kafka).on_worker(SimpleNamespace(app=app), {})
    lines = [record.getMessage() for record in caplog.records if record.name == "celery_neli.ordinary_beat"]
    assert len(lines) == 2
    assert all(f"{name} is set, which this app does not read" in line for line in lines)
    assert kafka.asked == 0


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("celery_neli.Schedular", "celery_neli.Scheduler"),
        ("celery_nelli.Scheduler", "celery_neli.Scheduler"),
        ("celery-neli.Scheduler", "celery_neli.Scheduler"),
        ("celery_neli:scheduler", "celery_neli.Scheduler"),
        ("celery_neli.beat.scheduler.Schedular", "celery_neli.Scheduler"),
        ("celery_neli.ReplicatedSheduler", "celery_neli.ReplicatedScheduler"),
    ],
)
def test_a_misspelt_scheduler_is_one_line_with_the_name_that_was_meant(name: str, meant: str) -> None:
    """Celery alone ends with a traceback."""

    @click.command()
    @click.option("-S", "--scheduler", callback=lambda ctx, option, value: value or "celery.beat.Scheduler")
    def beat(scheduler: str) -> None:
        click.echo(f"started {scheduler}")

    in_one_line(beat)
    result = CliRunner().invoke(beat, ["-S", name])
    assert result.exit_code == 1
    assert f"did you mean '{meant}'?" in result.output
    assert len(result.output.splitlines()) == 1
    assert CliRunner().invoke(beat, []).output == "started celery.beat.Scheduler\n"


@pytest.mark.parametrize(
    "name",
    [
        "celery_neli.Scheduler",
        "celery_neli.beat.scheduler:Scheduler",
        "neli",
        "redbeat.RedBeatSchedular",
        Scheduler,
        None,
    ],
)
def test_other_names_are_celerys_matter(name: Any) -> None:
    """And right ones are accepted."""
    assert misspelt(name) is None
