"""The notes that processes keep of their health, and what `celery neli health` makes of them."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from click.testing import CliRunner

from celery_neli.health.cli import health
from celery_neli.health.directory import DirectoryError, opened, path_of
from celery_neli.health.notes import FOREIGN_MOST, Note, NoteKeeper, file_name
from celery_neli.health.processes import look_up, where
from celery_neli.health.survey import survey
from celery_neli.health.vitals import Report
from tests.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

WELL = Report(hung=(), missing=(), leads=("leader",))


@dataclass
class Here:
    """The directory of notes, and what is put there."""

    path: Path

    def put(self, note: Note, *, old: float = 0.0) -> Path:
        with opened(self.path, create=True) as directory:
            directory.replace(name := file_name(note.group, note.where, note.pid), note.encode())
        os.utime(self.path / name, (time.time() - old,) * 2)
        return self.path / name

    def found(self, *groups: str) -> Any:
        return survey(self.path, groups or ("g.beat",))


def note_of(pid: int | None = None, **changes: Any) -> Note:
    pid = os.getpid() if pid is None else pid
    found = look_up(pid)
    note = Note(
        version=1, pid=pid, started=found[1] if found else 1, where=where(), group="g.beat", election="beat",
        name=f"web_{pid}", hung=[], missing=[], leads=["leader"], written=time.monotonic(),
    )  # fmt: skip
    return replace(note, **changes)


@pytest.fixture
def here(tmp_path: Path) -> Here:
    return Here(path_of(str(tmp_path)))


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """Another process."""
    process = subprocess.Popen(["sleep", "100"])
    yield process
    process.kill()
    process.wait()


def test_a_keeper_notes_what_changes_and_takes_its_note_away(here: Here) -> None:
    """At once, or two seconds later if nothing has changed; and nobody else may look."""
    reports = [WELL]
    keeper = NoteKeeper(here.path, "g.beat", "beat", "web", lambda: reports[-1])
    keeper.write()
    (found,) = here.found().found
    assert (found.name, found.pid, found.well, found.ready, found.leads) == (
        "web",
        os.getpid(),
        True,
        True,
        ("leader",),
    )
    (file,) = here.path.iterdir()
    assert (here.path.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)
    before = file.stat().st_ino
    keeper.write()
    assert file.stat().st_ino == before
    reports.append(Report(hung=("it hangs",), missing=("a topic",), leads=()))
    keeper.write()
    (found,) = here.found().found
    assert (found.well, found.hung, found.missing, found.leads) == (False, ("it hangs",), ("a topic",), ())
    keeper.start()
    keeper.stop()
    keeper.stop()
    assert list(here.path.iterdir()) == []


def test_a_note_is_renewed_by_its_thread(here: Here) -> None:
    """Or it would be taken for that of a process that hangs; also when somebody has removed the directory."""
    keeper = NoteKeeper(here.path, "g.beat", "beat", "web", lambda: WELL)
    keeper.start()
    try:
        wait_until(lambda: here.found().found, timeout=10, what="the first note")
        (file,) = here.path.iterdir()
        file.unlink()
        here.path.rmdir()
        wait_until(lambda: here.found().found, timeout=10, what="a further note")
    finally:
        keeper.stop()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"written": time.monotonic() - 12}, "it has not noted for 12 s that it is well"),
        ({"written": float("nan")}, "it has not noted for"),
        ({"hung": ["the beat's loop has not moved for 95 s"]}, "the beat's loop has not moved for 95 s"),
    ],
)
def test_who_is_not_well(changes: dict[str, Any], said: str, here: Here) -> None:
    """And who is not well leads nothing, whatever it noted."""
    if "written" in changes and changes["written"] == changes["written"]:
        changes = {"written": time.monotonic() - 12}
    here.put(note_of(**changes))
    (found,) = here.found().found
    assert not found.well
    assert found.hung[0].startswith(said)
    assert found.leads == ()


def test_a_stopped_process_is_found_at_once(here: Here, other: subprocess.Popen[bytes]) -> None:
    """Before its note is old."""
    here.put(note_of(other.pid))
    assert here.found().found[0].well
    other.send_signal(signal.SIGSTOP)
    wait_until(lambda: here.found().found[0].hung, timeout=5, what="the stop")
    assert here.found().found[0].hung == ("a signal or a debugger has stopped it",)


def test_a_dead_process_is_told_of_once(here: Here, other: subprocess.Popen[bytes]) -> None:
    """Killed, and not even reaped; or its pid belongs to another process by now."""
    killed = note_of(other.pid)
    here.put(killed)
    reused = here.put(note_of(os.getppid(), started=1))
    other.kill()
    wait_until(lambda: look_up(other.pid) is None, timeout=5, what="its end")
    found = here.found()
    assert found.found == []
    assert sorted(each.pid for each in found.ended) == sorted([other.pid, os.getppid()])
    assert not reused.exists()
    assert here.found().ended == []


def test_other_groups_and_other_containers_are_no_matter(here: Here) -> None:
    """Their notes stay: a pid means nothing there. After an hour without a new note, one of them goes."""
    here.put(note_of(group="crm.beat"))
    foreign = here.put(note_of(2**22 + 1, where="another boot:1"))
    assert (here.found().found, here.found().ended) == ([], [])
    assert foreign.exists()
    os.utime(foreign, (time.time() - FOREIGN_MOST - 60,) * 2)
    assert here.found().ended == []
    assert not foreign.exists()
    assert len(here.found("crm.beat").found) == 1


def test_who_starts_sweeps(here: Here) -> None:
    """Processes that crash again and again leave no heap, though nobody asks for them."""
    dead = here.put(note_of(2**22 + 1))
    (here.path / "rubbish").write_text("no note")
    os.utime(here.path / "rubbish", (1, 1))
    keeper = NoteKeeper(here.path, "g.beat", "beat", "web", lambda: WELL)
    keeper.write()
    assert not dead.exists()
    assert len(list(here.path.iterdir())) == 1


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"[]", b"{}", b"[" * 60_000, json.dumps({"version": 1, "pid": "x"}).encode(), b'{"version": 2}'],
)
def test_what_is_no_note_is_ignored(content: bytes, here: Here) -> None:
    """Of another release, torn, or a stranger's."""
    here.put(note_of()).write_bytes(content)
    assert here.found() == survey(here.path, ())


@pytest.mark.parametrize("field", ["pid", "started", "where", "group", "name", "hung", "leads", "written", "version"])
def test_a_note_with_a_field_of_another_type_is_ignored(field: str) -> None:
    """Whatever it is."""
    value = json.loads(note_of().encode())
    assert Note.decode(json.dumps(value).encode()) is not None
    for wrong in (None, {}, [1], True):
        assert Note.decode(json.dumps({**value, field: wrong}).encode()) is None


def test_links_and_foreign_directories_are_refused(here: Here, tmp_path: Path) -> None:
    """In the directory for temporary files anybody may put something in the way."""
    (elsewhere := tmp_path / "elsewhere").mkdir()
    here.path.symlink_to(elsewhere)
    with pytest.raises(DirectoryError, match="cannot be used"), opened(here.path, create=True):
        pass
    assert list(elsewhere.iterdir()) == []
    here.path.unlink()
    secret = tmp_path / "secret"
    secret.write_bytes(note_of().encode())
    file = here.put(note_of())
    file.unlink()
    file.symlink_to(secret)
    Path(f"{file}.new").symlink_to(secret)
    assert here.found().found == []
    keeper = NoteKeeper(here.path, "g.beat", "beat", "web", lambda: WELL)
    keeper.write()
    assert json.loads(secret.read_bytes())["name"] == f"web_{os.getpid()}"


def test_a_pipe_in_the_way_does_not_hold_up_the_probe(here: Here) -> None:
    """Opening one waits for somebody who writes."""
    file = here.put(note_of())
    file.unlink()
    os.mkfifo(file)
    assert here.found().found == []


def test_a_directory_of_another_user_is_refused(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner could write whatever it likes; and what is open to others is closed."""
    here.put(note_of())
    here.path.chmod(0o777)
    assert len(here.found().found) == 1
    assert here.path.stat().st_mode & 0o777 == 0o700
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    assert f"belongs to the user {mine}" in here.found().trouble


def test_a_directory_that_cannot_be_written_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A read-only file system, for instance: the process goes on."""
    (tmp_path / "file").write_text("")
    keeper = NoteKeeper(tmp_path / "file" / "sub" / "celery-neli-0", "g.beat", "beat", "web", lambda: WELL)
    with caplog.at_level(logging.INFO, logger="celery_neli.health"):
        keeper.write()
        keeper.write()
    (line,) = caplog.messages
    assert "set neli_health_dir" in line
    assert "Not a directory" in line


@pytest.fixture
def app(tmp_path: Path) -> Celery:
    app = Celery("shop", set_as_current=False)
    app.conf.update(neli_group="g", neli_health_dir=str(tmp_path))
    return app


def run(app: Celery, *arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(health, arguments, obj=SimpleNamespace(app=app), catch_exceptions=False)
    return done.exit_code, done.output


def test_the_command_says_who_is_well(app: Celery, here: Here, other: subprocess.Popen[bytes]) -> None:
    """One line each, and why not; the exit status is for the probe."""
    here.put(note_of(leads=[]))
    here.put(note_of(other.pid, group="g.worker", election="worker", missing=["no topic\n\x1b[31m"], leads=["mail"]))
    me, it = os.getpid(), other.pid
    worker = f"worker web_{it} pid={it}: well, not ready: no topic\\n\\x1b[31m, leads mail\n"
    assert run(app) == (0, f"beat web_{me} pid={me}: well\n{worker}")
    assert run(app, "--election", "beat", "--ready") == (0, f"beat web_{me} pid={me}: well\n")
    assert run(app, "--ready") == (1, f"beat web_{me} pid={me}: well\n{worker}1 of 2 processes not ready\n")
    assert [run(app, *each)[0] for each in (["--leader"], ["--leader", "mail"], ["--leader", "leader"])] == [0, 0, 1]
    assert run(app, "--leader", "--election", "beat")[1].endswith("no process here leads any role\n")
    other.send_signal(signal.SIGSTOP)
    wait_until(lambda: run(app)[0] == 1, timeout=5, what="the stop")
    assert f"worker web_{it} pid={it}: NOT WELL: a signal or a debugger has stopped it\n" in run(app)[1]
    other.kill()
    other.wait()
    code, said = run(app, "--json")
    assert (code, json.loads(said)["ended"]) == (0, [{"election": "worker", "name": f"web_{it}", "pid": it}])
    assert run(app)[0] == 0


def test_no_process_is_not_well_and_the_command_says_what_to_look_at(app: Celery, here: Here) -> None:
    """No directory, no note, or switched off."""
    code, said = run(app)
    assert code == 1
    assert f"no process of g.beat or g.worker has a note in {here.path}: " in said
    assert "No such file or directory" in said
    assert "set neli_health_dir to" in said
    code, said = run(app, "--json")
    assert (code, json.loads(said)["well"]) == (1, False)
    app.conf.neli_health_dir = ""
    assert "neli_health_dir is empty" in run(app)[1]
    app.conf.neli_enabled = False
    assert "neli_enabled = False" in run(app)[1]
    assert json.loads(run(app, "--json")[1])["processes"] == []


COMMAND = """
import sys, time
from celery import Celery
import celery.bin.celery
from click.testing import CliRunner
from types import SimpleNamespace
import celery_neli.cli
app = Celery("shop")
app.conf.update(neli_group="g", neli_health_dir=sys.argv[1], neli_kafka="nowhere:1")
start = time.process_time()
done = CliRunner().invoke(celery_neli.cli.health, [], obj=SimpleNamespace(app=app), catch_exceptions=False)
print(time.process_time() - start, done.exit_code, *{"confluent_kafka", "celery_neli.election.neli"} & set(sys.modules))
"""


def test_the_command_is_quick_and_loads_no_kafka_client(here: Here, tmp_path: Path) -> None:
    """A probe may be run every few seconds: 0.1 s of CPU beyond what any command takes (the best of five)."""
    here.put(note_of(written=time.monotonic() + 1e9))
    took = []
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, str(tmp_path)], capture_output=True, text=True, check=True
        ).stdout.split()
        assert done[1:] == ["1"]
        took.append(float(done[0]))
    print(f"celery neli health: {min(took) * 1000:.1f} ms")
    assert min(took) < 0.1
