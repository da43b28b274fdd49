"""What each scheduler leaves behind when it is put down, and how its store is kept from writing at the wrong time."""

from __future__ import annotations

import gc
import shelve
import threading
import weakref
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from celery import beat as celery_beat
from celery import signals as celery_signals
from celery.schedules import schedule

from tests.unit.fakes import FakeLeadership
from tests.unit.schedulers import (
    Beat,
    Database,
    Kind,
    Persistent,
    RedBeat,
    an_hour_ago,
    eventually,
    in_mid_dispatch,
    make_app,
)

if TYPE_CHECKING:
    from pathlib import Path


# -- PersistentScheduler --------------------------------------------------------------------------------------


def test_an_abandoned_shelf_does_not_overwrite_its_successors(persistent: Persistent) -> None:
    """A shelf writes its cache when closed and when collected: after a fence the file is the successor's."""
    path = str(persistent.directory / "schedule")
    with persistent.beat() as beat:
        persistent.leadership.grant(1)
        beat.sends(1)
        beat.turns(2)
        with shelve.open(path) as shelf:  # noqa: S301 - the successor
            entries = shelf["entries"]
            entries["entry"].total_run_count = 99
            shelf["entries"] = entries
        persistent.leadership.fence()
        beat.turns()
        gc.collect()
        assert persistent.runs() == 99
    gc.collect()
    assert persistent.runs() == 99


def test_a_shelf_cut_off_in_the_middle_of_a_write_is_written_at_the_close(persistent: Persistent) -> None:
    """Celery's SIGTERM handler raises anywhere; a shelf whose sync was cut off would never write its cache again."""
    cut: list[str] = []

    class Shelf(shelve.DbfilenameShelf):
        def __setitem__(self, key: str, value: Any) -> None:
            if key == "entries" and value["entry"].total_run_count == 1 and not cut:
                cut.append(key)
                raise SystemExit
            super().__setitem__(key, value)

    class Persistence:
        @staticmethod
        def open(filename: str, writeback: bool) -> Shelf:
            return Shelf(filename, "c", None, writeback)

    class Watched(celery_beat.PersistentScheduler):
        persistence = Persistence

    with persistent.beat(neli_scheduler=Watched) as beat:
        persistent.leadership.grant(1)
        eventually(beat.ended, what="end")
    assert cut == ["entries"]
    assert len(beat.sent()) == 1
    assert persistent.runs() == 1


@pytest.mark.parametrize("end", ["lapse", "revoke"])
def test_a_shelf_is_closed_before_the_next_is_opened(tmp_path: Path, end: str) -> None:
    """With gdbm opening the file that is still open fails, whereupon Celery deletes it."""
    open_now: list[Any] = []
    overlaps: list[Any] = []
    kept: list[Any] = []  # so that none is closed by being collected

    class Shelf(shelve.DbfilenameShelf):
        def close(self) -> None:
            if id(self) in open_now:
                open_now.remove(id(self))
            super().close()

    class Persistence:
        @staticmethod
        def open(filename: str, writeback: bool) -> Shelf:
            overlaps.extend(open_now)
            shelf = Shelf(filename, "c", None, writeback)
            open_now.append(id(shelf))
            kept.append(shelf)
            return shelf

    class Watched(celery_beat.PersistentScheduler):
        persistence = Persistence

    app = make_app(neli_scheduler=Watched, beat_schedule={})
    with Beat(app, schedule_filename=str(tmp_path / "s")) as beat:
        for term in (1, 2, 3):
            beat.leadership.grant(term)
            eventually(lambda: open_now, what="open")
            if ended := getattr(beat.leadership, end)():
                ended.join(5)
            eventually(lambda: not open_now, what="close")
    assert overlaps == []


# -- a celery.beat.Scheduler of 5.5 or 5.6 --------------------------------------------------------------------


@pytest.mark.parametrize("end", ["lapse", "revoke"])
def test_the_connection_to_the_task_broker_is_released_with_the_term(tmp_path: Path, end: str) -> None:
    """Celery 5.5 and 5.6 leave it open in close()."""
    kind = Kind(tmp_path)
    connections: list[Any] = []

    class Celery55(celery_beat.Scheduler):
        def close(self) -> None:
            self.sync()

        def send_task(self, *args: Any, **kwargs: Any) -> Any:
            connections.append(self.connection)
            return super().send_task(*args, **kwargs)

    with kind.beat(neli_scheduler=Celery55) as beat:
        kind.leadership.grant(1)
        beat.sends(1)
        (connection,) = set(connections)
        assert connection.connected
        getattr(kind.leadership, end)()
        eventually(lambda: not connection.connected, what="release")


# -- DatabaseScheduler ----------------------------------------------------------------------------------------


def test_a_database_row_is_written_with_each_task_sent(database: Database) -> None:
    """Every three minutes would do for one beat; a successor of a killed one would send those minutes again."""
    from django_celery_beat.models import IntervalSchedule, PeriodicTask

    beat = database.beat()
    interval, _ = IntervalSchedule.objects.get_or_create(every=30, period=IntervalSchedule.MINUTES)
    for name in ("second", "third"):
        PeriodicTask.objects.create(name=name, task="t", interval=interval, last_run_at=an_hour_ago())
    with beat:
        database.leadership.grant(1)
        beat.sends(3)
        eventually(
            lambda: list(PeriodicTask.objects.values_list("total_run_count", flat=True)) == [1, 1, 1], what="rows"
        )
        database.leadership.lapse()


def test_beat_sync_every_is_respected(database: Database) -> None:
    from django_celery_beat.models import IntervalSchedule, PeriodicTask

    beat = database.beat(beat_sync_every=1000)
    interval, _ = IntervalSchedule.objects.get_or_create(every=30, period=IntervalSchedule.MINUTES)
    for name in ("second", "third"):
        PeriodicTask.objects.create(name=name, task="t", interval=interval, last_run_at=an_hour_ago())
    with beat:
        database.leadership.grant(1)
        beat.sends(3)
        beat.turns(2)
        # The first send always syncs (Celery: nothing was synced yet).
        assert sorted(PeriodicTask.objects.values_list("total_run_count", flat=True)) == [0, 0, 1]
        # A fence drops the others, also at the end of the process; a handover writes them.
        database.leadership.fence()
        beat.turns()
        assert sorted(PeriodicTask.objects.values_list("total_run_count", flat=True)) == [0, 0, 1]


def test_a_task_cut_off_is_not_written_with_its_neighbours(database: Database) -> None:
    """SIGTERM in mid-dispatch: the run before it is written, its own is not."""
    from django_celery_beat.models import IntervalSchedule, PeriodicTask

    beat = database.beat(beat_sync_every=1000)
    interval, _ = IntervalSchedule.objects.get_or_create(every=30, period=IntervalSchedule.MINUTES)
    for name in ("second", "third"):
        PeriodicTask.objects.create(name=name, task="t", interval=interval, last_run_at=an_hour_ago())
    seen: list[int] = []

    def handler() -> None:
        seen.append(1)
        if len(seen) == 3:
            beat.scheduler.close()
            raise SystemExit

    with in_mid_dispatch(beat.app, handler), beat:
        database.leadership.grant(1)
        eventually(beat.ended, what="end")
    assert len(beat.sent()) == 2
    assert sorted(PeriodicTask.objects.values_list("total_run_count", flat=True)) == [0, 1, 1]


def test_a_row_cut_off_in_the_middle_of_a_write_is_written_at_the_close(database: Database) -> None:
    """Celery's SIGTERM handler raises anywhere; DatabaseScheduler has forgotten the row that it is saving by then."""
    from django_celery_beat.schedulers import DatabaseScheduler, ModelEntry

    cut: list[str] = []

    class Entry(ModelEntry):  # type: ignore[misc]
        def save(self) -> None:
            if not cut:
                cut.append(self.name)
                raise SystemExit
            super().save()

    class Watched(DatabaseScheduler):  # type: ignore[misc]
        pass

    Watched.Entry = Entry
    with database.beat(neli_scheduler=Watched) as beat:
        database.leadership.grant(1)
        eventually(beat.ended, what="end")
    assert cut == ["entry"]
    assert len(beat.sent()) == 1
    assert database.runs() == 1


def test_the_database_schedulers_of_past_terms_are_freed(database: Database) -> None:
    """Each registers a finalizer that would keep it alive and write at exit."""
    from django_celery_beat.schedulers import DatabaseScheduler

    made: weakref.WeakSet[Any] = weakref.WeakSet()

    class Counted(DatabaseScheduler):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            made.add(self)
            super().__init__(*args, **kwargs)

    with database.beat(neli_scheduler=Counted) as beat:
        for term, end in ((1, "lapse"), (2, "revoke"), (3, "fence")):
            turns = database.leadership.turns
            database.leadership.grant(term)
            eventually(lambda: made, what="building")
            eventually(lambda turns=turns: database.leadership.turns > turns + 2, what="turns")
            if ended := getattr(database.leadership, end)():
                ended.join(5)
            beat.turns(2)
        eventually(lambda: gc.collect() >= 0 and not made, what="freeing")


def test_a_row_that_never_ran_counts_as_run_when_the_predecessor_was_last_heard_of(database: Database) -> None:
    """Else it would count as run now, with every new leader: a row of beat_schedule is touched at each start."""
    from django_celery_beat.models import PeriodicTask

    entries = {"fresh": {"task": "u", "schedule": timedelta(minutes=30)}}
    with database.beat(beat_schedule=entries) as beat:
        database.leadership.grant(1)
        assert {each["neli_beat_entry"] for each in beat.sends(2)} == {"entry", "fresh"}
        eventually(lambda: PeriodicTask.objects.get(name="fresh").total_run_count == 1, what="row")


def test_a_row_that_ran_keeps_its_time(database: Database) -> None:
    """Also when the predecessor's clock was ahead of ours."""
    from django_celery_beat.models import PeriodicTask

    beat = database.beat()
    PeriodicTask.objects.update(last_run_at=datetime.now(timezone.utc) + timedelta(seconds=3))
    with beat:
        database.leadership.grant(1)
        beat.turns()
        assert beat.sent() == []


# -- RedBeat --------------------------------------------------------------------------------------------------


def test_redbeats_own_lock_is_off(redbeat: RedBeat) -> None:
    """The lease is the lock; one that nobody took would fail every tick."""
    import redis

    assert redbeat.redis_url is not None
    with redbeat.beat() as beat, redis.Redis.from_url(redbeat.redis_url) as client:
        redbeat.leadership.grant(1)
        beat.sends(1)
        assert client.keys("*lock*") == []


def test_redbeats_receiver_of_beat_init_finds_nothing_to_lock(
    redbeat: RedBeat, caplog: pytest.LogCaptureFixture
) -> None:
    """It runs with the outer scheduler, as soon as RedBeat was imported."""
    import redbeat as imported

    assert imported
    beat = redbeat.beat()

    class Service:
        scheduler = beat.scheduler

    responses = celery_signals.beat_init.send(sender=Service)
    assert [response for _, response in responses if isinstance(response, Exception)] == []
    beat.scheduler.close()


def test_redbeat_writes_a_run_after_its_message_left(redbeat: RedBeat) -> None:
    """An undo would race with the successor; so the write waits, and a crash in between doubles instead of losing."""
    at_publish: list[int] = []
    with redbeat.beat() as beat, in_mid_dispatch(beat.app, lambda: at_publish.append(redbeat.runs())):
        redbeat.leadership.grant(1)
        beat.sends(1)
        eventually(lambda: redbeat.runs() == 1, what="write")
        assert at_publish == [0]


def test_redbeat_writes_nothing_once_the_lease_is_lost(redbeat: RedBeat) -> None:
    """The message just left, and then the term ended: by now the successor may have written a later run."""

    def fence(**kwargs: Any) -> None:
        redbeat.leadership.fence()

    celery_signals.after_task_publish.connect(fence, weak=False, dispatch_uid="fence")
    try:
        with redbeat.beat() as beat:
            redbeat.leadership.grant(1)
            beat.sends(1)
            beat.turns()
            assert redbeat.runs() == 0
    finally:
        celery_signals.after_task_publish.disconnect(dispatch_uid="fence")


def test_a_tick_of_many_entries_stops_at_the_next_one(redbeat: RedBeat) -> None:
    """RedBeat sends all that is due in one tick: each entry asks whether it may start."""
    from redbeat import RedBeatSchedulerEntry

    beat = redbeat.beat()
    for name in ("second", "third"):
        RedBeatSchedulerEntry(name, "t", schedule(1800, app=beat.app), last_run_at=an_hour_ago(), app=beat.app).save()
    with beat, in_mid_dispatch(beat.app, redbeat.leadership.drain) as seen:
        redbeat.leadership.grant(1)
        beat.sends(1)
        beat.turns()
        assert len(seen) == 1
        assert len(beat.sent()) == 1


def test_a_long_tick_reports_progress_with_each_message(redbeat: RedBeat) -> None:
    """All that is due in one tick may take longer than neli_stall_timeout; a leader that sends is not stalled."""
    from redbeat import RedBeatSchedulerEntry

    beat = redbeat.beat()
    RedBeatSchedulerEntry("second", "t", schedule(1800, app=beat.app), last_run_at=an_hour_ago(), app=beat.app).save()
    turns: list[int] = []
    with beat, in_mid_dispatch(beat.app, lambda: turns.append(redbeat.leadership.turns)):
        redbeat.leadership.grant(1)
        beat.sends(2)
        assert turns[1] > turns[0]


def test_a_run_that_redis_could_not_take_is_written_before_anything_else_is_sent(redbeat: RedBeat) -> None:
    """The message left, the write failed: the task is not sent again."""
    import redis

    assert redbeat.redis_url is not None
    with redis.Redis.from_url(redbeat.redis_url) as client:

        def redis_fills_up(**kwargs: Any) -> None:
            client.config_set("maxmemory", 1)  # reads go on, writes are refused

        celery_signals.after_task_publish.connect(redis_fills_up, weak=False, dispatch_uid="fills up")
        try:
            with redbeat.beat() as beat:
                redbeat.leadership.grant(1)
                beat.sends(1)
                turns = redbeat.leadership.turns
                threading.Event().wait(0.7)  # some attempts: none is progress
                assert redbeat.leadership.turns <= turns + 2
                assert redbeat.runs() == 0
                client.config_set("maxmemory", 0)
                eventually(lambda: redbeat.runs() == 1, what="write")
                beat.turns()
                assert len(beat.sent()) == 1
        finally:
            celery_signals.after_task_publish.disconnect(dispatch_uid="fills up")
            client.config_set("maxmemory", 0)


def test_a_redis_that_is_gone_does_not_end_beat(redbeat: RedBeat, caplog: pytest.LogCaptureFixture) -> None:
    from tests.processes import free_ports

    (port,) = free_ports(1)
    app = make_app(
        neli_scheduler="redbeat.RedBeatScheduler",
        redbeat_redis_url=f"redis://127.0.0.1:{port}",
        redbeat_redis_options={},
    )
    with Beat(app, leadership=FakeLeadership()) as beat:
        beat.leadership.grant(1)
        eventually(lambda: "cannot be built" in caplog.text, what="the reason")
        beat.leadership.revoke().join(3)
        assert not beat.leadership.held()
        beat.turns()
        assert not beat.ended()
