"""The outer scheduler: joining, waiting, handing over, surviving failures, and Celery's own use of it."""

from __future__ import annotations

import functools
import logging
import threading
import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import click
import pytest
from celery import beat as celery_beat
from celery.apps.beat import Beat as BeatCommand
from celery.schedules import crontab
from kombu.exceptions import OperationalError

from celery_neli import signals
from celery_neli.beat.scheduler import Scheduler
from celery_neli.exceptions import ConfigurationError
from tests.processes import free_ports
from tests.unit.fakes import FakeLeadership
from tests.unit.schedulers import Beat, Kind, an_hour_ago, eventually, in_mid_dispatch, make_app

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DUE_EVERY_SECOND = {"entry": {"task": "t", "schedule": 1.0}}
DUE_AT_ONCE = {"entry": {"task": "t", "schedule": 1800.0}}


class Inner(celery_beat.Scheduler):
    """A wrapped scheduler that tells of itself, and fails on demand."""

    built: list[Inner]
    fail_building = fail_ticking = False
    sync_every = 0
    syncs = 0
    attempts: list[int]

    def setup_schedule(self) -> None:
        self.attempts.append(1)
        if type(self).fail_building:
            raise OSError("no database")
        type(self).built.append(self)
        super().setup_schedule()

    def tick(self, *args: Any, **kwargs: Any) -> Any:
        if type(self).fail_ticking:
            raise OSError("database gone")
        return super().tick(*args, **kwargs)

    def sync(self) -> None:
        self.syncs += 1


@pytest.fixture
def wrapped_class() -> type[Inner]:
    return type("Inner", (Inner,), {"built": [], "attempts": []})


@pytest.fixture
def plain(tmp_path: Path) -> Kind:
    return Kind(tmp_path)


# -- construction ---------------------------------------------------------------------------------------------


def test_construction_starts_nothing(plain: Kind) -> None:
    """Celery builds schedulers for the banner and in signal handlers; they are never ticked, but closed."""
    before = threading.active_count()
    beat = plain.beat()
    beat.scheduler.close()
    assert threading.active_count() == before
    assert (plain.leadership.started, plain.leadership.stopped) == (0, 0)


def test_the_first_tick_joins_the_election_once(plain: Kind) -> None:
    with plain.beat() as beat:
        beat.turns()
        assert plain.leadership.started == 1
    assert plain.leadership.stopped == 1


def test_the_leadership_comes_from_the_factory_at_the_first_tick() -> None:
    """One per process and election; nothing of it is made before."""
    made: list[Any] = []

    class WithFake(Scheduler):
        leadership_factory = staticmethod(lambda app: made.append(app) or FakeLeadership())

    app = make_app()
    scheduler = WithFake(app=app, max_interval=0.01)
    assert made == []
    scheduler.tick()
    scheduler.tick()
    assert made == [app]
    scheduler.close()


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"neli_hearbeat_timeout": 5}, "neli_hearbeat_timeout is not a setting"),
        ({"neli_scheduler": "no.such.Scheduler"}, "neli_scheduler = 'no.such.Scheduler' cannot be imported"),
    ],
)
def test_a_wrong_setting_ends_the_command_with_one_line_where_the_banner_is_made(
    conf: dict[str, Any], message: str
) -> None:
    """Later Celery prints it hundreds of lines deep; click prints this one as `Error: …`."""
    app = make_app(neli_group="shop", **conf)
    command = BeatCommand(app=app, scheduler="celery_neli.beat.scheduler.Scheduler")
    service = celery_beat.Service(app, scheduler_cls="celery_neli.beat.scheduler.Scheduler")
    with pytest.raises(click.ClickException, match=message):
        command.banner(service)


def test_the_banner_names_the_scheduler_that_is_led(plain: Kind, capsys: pytest.CaptureFixture[str]) -> None:
    """`celery beat` prints `info` and `max_interval` of a lazy instance."""
    app = make_app(neli_group="shop", neli_scheduler="celery.beat.PersistentScheduler")
    command = BeatCommand(app=app, scheduler="celery_neli.beat.scheduler.Scheduler", quiet=False)
    banner = command.banner(celery_beat.Service(app, scheduler_cls="celery_neli.beat.scheduler.Scheduler"))
    assert "celery_neli.beat.scheduler.Scheduler" in banner
    assert "celery.beat.PersistentScheduler" in banner
    assert "shop.beat" in banner


def test_switched_off_it_is_the_plain_wrapped_scheduler(tmp_path: Path) -> None:
    """neli_enabled = False: no election, no leased class, Celery's scheduler itself."""
    app = make_app(neli_enabled=False, neli_scheduler="celery.beat.PersistentScheduler")
    scheduler = Scheduler(app=app, schedule_filename=str(tmp_path / "s"), max_interval=3, lazy=True)
    assert type(scheduler) is celery_beat.PersistentScheduler
    assert scheduler.max_interval == 3


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("celery_neli.beat.scheduler.Scheduler", "own scheduler"),
        ("celery_neli.beat.scheduler:Scheduler", "own scheduler"),
        ("no.such.Scheduler", "cannot be imported"),
        ("celery_neli.ReplicatedSchedular", "did you mean 'celery_neli.ReplicatedScheduler'"),
        ("celery.beat.PersistantScheduler", "did you mean 'celery.beat.PersistentScheduler'"),
        ("celery.beat.Service", "not a subclass"),
    ],
)
def test_an_unfit_wrapped_scheduler_is_refused_before_joining(setting: str, words: str) -> None:
    leadership = FakeLeadership()
    scheduler = Scheduler(app=make_app(neli_scheduler=setting), leadership=leadership)
    with pytest.raises(ConfigurationError, match=words) as raised:
        scheduler.tick()
    assert f"neli_scheduler = '{setting}'" in str(raised.value)
    assert leadership.started == 0


def test_the_wrapped_scheduler_may_be_an_alias(plain: Kind, django_tables: None) -> None:
    """As in `celery beat -S django`."""
    app = make_app(neli_scheduler="django")
    with Beat(app) as beat:
        beat.leadership.grant(1)
        eventually(
            lambda: type(beat.scheduler.schedule).__name__ == "dict" and beat.leadership.turns > 2, what="a turn"
        )


# -- waiting --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leads", [False, True])
def test_waiting_for_the_next_entry_is_no_stall(plain: Kind, leads: bool) -> None:
    """However short neli_stall_timeout, a scheduler with nothing to do says in time that it is alive."""
    leadership = plain.leadership
    with Beat(make_app(neli_stall_timeout=1.0), leadership=leadership, max_interval=300) as beat:
        if leads:
            leadership.grant(1)
        eventually(lambda: leadership.turns > 1, what="the first turns")
        before, began = leadership.turns, time.monotonic()
        eventually(lambda: leadership.turns > before + 1, what="two more turns")
        assert time.monotonic() - began < 2 * 1.0
        assert beat.raised is None


@pytest.mark.parametrize("moment", ["acquired", "revoked", "fenced", "closed"])
def test_a_waiting_tick_wakes_at_once(moment: str) -> None:
    """Celery's own sleep could not be woken; so ticks wait themselves, and say that there is nothing left to sleep."""
    app = make_app(beat_schedule={})
    leadership = FakeLeadership()
    scheduler = Scheduler(app=app, leadership=leadership, max_interval=300)
    results: list[float] = []
    if moment in ("revoked", "fenced"):
        leadership.grant(1).join()
    thread = threading.Thread(target=lambda: results.append(scheduler.tick()), daemon=True)
    thread.start()
    eventually(lambda: leadership.turns, what="the turn to be waiting")
    began = time.monotonic()
    acts = {
        "acquired": lambda: leadership.grant(1),
        "revoked": leadership.revoke,
        "fenced": leadership.fence,
        "closed": scheduler.close,
    }
    acts[moment]()
    thread.join(4)
    assert results == [0.0]
    assert time.monotonic() - began < 1
    scheduler.close()


def test_a_tick_never_waits_longer_than_five_seconds_or_max_interval() -> None:
    """So that a leader that is told nothing notices, and `celery inspect ping` goes on being answered."""
    scheduler = Scheduler(app=make_app(), leadership=FakeLeadership(), max_interval=0.02)
    began = time.monotonic()
    assert scheduler.tick() == 0
    assert time.monotonic() - began < 1
    scheduler.close()


def test_signals_of_another_election_are_not_taken_for_ours(plain: Kind) -> None:
    """The worker's leadership in the same process sends the same signals."""
    with plain.beat() as beat:
        plain.leadership.grant(1)
        beat.sends(1)
        built_for = beat.scheduler.schedule
        signals.leadership_fenced.send(sender=FakeLeadership(), role="0", term=1, election="worker")
        beat.turns()
        assert beat.scheduler.schedule is built_for


def test_the_leader_syncs_by_itself(wrapped_class: type[Inner]) -> None:
    """Service.start skips should_sync when tick returns 0; standbys never write."""
    with Beat(make_app(neli_scheduler=wrapped_class, beat_schedule={})) as beat:
        beat.turns()
        assert wrapped_class.built == []
        beat.leadership.grant(1)
        eventually(lambda: wrapped_class.built and wrapped_class.built[0].syncs > 1, what="syncs")
        beat.leadership.lapse()
        beat.turns(2)
        (wrapped,) = wrapped_class.built
        syncs = wrapped.syncs
        wrapped.sync()
        wrapped.close()
        beat.turns(2)
        assert wrapped.syncs == syncs, "written without the lease"


# -- handing over ---------------------------------------------------------------------------------------------


def test_no_new_message_starts_while_a_hand_over_drains(plain: Kind) -> None:
    """reserve() asks whether new work may start, not whether old work may finish."""
    entries = {str(n): {"task": "t", "schedule": 1800.0} for n in range(3)}
    with plain.beat(beat_schedule=entries) as beat, in_mid_dispatch(beat.app, plain.leadership.drain):
        plain.leadership.grant(1)
        beat.sends(1)
        beat.turns()
        assert len(beat.sent()) == 1


def test_a_fence_is_not_waited_for(plain: Kind) -> None:
    """It cannot delay anything: the receiver returns while the tick is still busy."""
    reached, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        reached.set()
        go_on.wait(5)

    with plain.beat() as beat, in_mid_dispatch(beat.app, hold):
        plain.leadership.grant(1)
        assert reached.wait(5)
        fenced = plain.leadership.fence()
        fenced.join(2)
        assert not fenced.is_alive()
        go_on.set()


def test_a_hand_over_waits_no_longer_than_drain_timeout(plain: Kind) -> None:
    """A tick that hangs is given up; when it comes back, its message does not leave."""
    reached, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        reached.set()
        go_on.wait(5)

    plain.leadership.config = replace(plain.leadership.config, drain_timeout=0.1)
    with plain.beat() as beat:
        with in_mid_dispatch(beat.app, hold):
            plain.leadership.grant(1)
            assert reached.wait(5)
            plain.leadership.revoke().join(3)
            assert not plain.leadership.held()
            go_on.set()
            beat.turns()
        assert beat.sent() == []


# -- closing --------------------------------------------------------------------------------------------------


def test_close_during_a_tick_only_takes_note(plain: Kind) -> None:
    """In a signal handler nothing may be touched that the interrupted tick holds; the next turn closes."""
    beat = plain.beat()
    stopped_inside: list[int] = []

    def handler() -> None:
        beat.scheduler.close()
        beat.scheduler.close()
        stopped_inside.append(plain.leadership.stopped)

    with in_mid_dispatch(beat.app, handler), beat:
        plain.leadership.grant(1)
        eventually(lambda: plain.leadership.stopped, what="stop")
        assert stopped_inside == [0]
        assert len(beat.sent()) == 1, "the message in flight leaves: the term is still ours"


def test_close_between_ticks_acts_at_once(wrapped_class: type[Inner]) -> None:
    app = make_app(neli_scheduler=wrapped_class, beat_schedule={})
    leadership = FakeLeadership()
    scheduler = Scheduler(app=app, leadership=leadership, max_interval=0.01)
    leadership.grant(1).join()
    scheduler.tick()
    syncs = wrapped_class.built[0].syncs
    scheduler.close()
    assert wrapped_class.built[0].syncs > syncs
    assert leadership.stopped == 1
    scheduler.close()
    assert leadership.stopped == 1
    assert scheduler.tick() > 0, "a closed scheduler must not spin"
    assert len(wrapped_class.built) == 1


def test_receivers_are_gone_after_close(plain: Kind) -> None:
    """A closed scheduler holds up nobody's handover and is not kept alive by the signals."""
    before = [
        len(signal.receivers)
        for signal in (signals.leadership_acquired, signals.leadership_revoked, signals.leadership_fenced)
    ]
    with plain.beat() as beat:
        beat.turns(1)
    after = [
        len(signal.receivers)
        for signal in (signals.leadership_acquired, signals.leadership_revoked, signals.leadership_fenced)
    ]
    assert after == before


# -- failures -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["amqp", "redis"])
def test_a_dead_task_broker_neither_ends_beat_nor_keeps_it_in_office(transport: str, tmp_path: Path) -> None:
    """Celery's beat exits after 100 attempts; ours reports no progress meanwhile and hands over at once."""
    kind = Kind(tmp_path)
    (port,) = free_ports(1)
    with kind.beat(broker_url=f"{transport}://127.0.0.1:{port}//", broker_connection_timeout=1) as beat:
        beat.turns()
        kind.leadership.grant(1).join()
        time.sleep(0.3)  # let the attempts begin
        turns = kind.leadership.turns
        time.sleep(0.3)
        assert kind.leadership.turns == turns
        handed_over = kind.leadership.revoke()
        handed_over.join(4)
        assert not handed_over.is_alive()
        beat.turns()
        assert not beat.ended()


def test_a_task_broker_lost_within_a_term_costs_no_more_than_the_message_in_flight(plain: Kind) -> None:
    """Celery would advance entry after entry into the void; ours waits for the broker, without progress."""
    (port,) = free_ports(1)
    attempts: list[str] = []

    class LosesBroker(celery_beat.Scheduler):
        def send_task(self, name: str, *args: Any, **kwargs: Any) -> Any:
            attempts.append(name)
            if len(attempts) == 2:
                self.app.conf.broker_url = f"redis://127.0.0.1:{port}/0"
                raise OperationalError("broker gone")
            return super().send_task(name, *args, **kwargs)

    entries = {str(n): {"task": "t", "schedule": 1800.0} for n in range(4)}
    with plain.beat(neli_scheduler=LosesBroker, beat_schedule=entries) as beat:
        plain.leadership.grant(1)
        eventually(lambda: len(attempts) == 2, what="the loss")
        time.sleep(0.3)  # let the next attempt begin
        turns = plain.leadership.turns
        time.sleep(0.3)
        assert plain.leadership.turns == turns
        assert len(attempts) == 2, "went on advancing entries without a broker"
        beat.app.conf.broker_url = "memory://"


def test_a_wrapped_scheduler_that_cannot_be_built_is_tried_again(
    wrapped_class: type[Inner], caplog: pytest.LogCaptureFixture
) -> None:
    """Said once a term with the reason; no progress meanwhile, so that another may lead; the process stays."""
    wrapped_class.fail_building = True
    app = make_app(neli_scheduler=wrapped_class, beat_schedule=DUE_AT_ONCE)
    leadership = FakeLeadership()
    leadership.predecessor_active = an_hour_ago()
    with caplog.at_level(logging.ERROR), Beat(app, leadership=leadership) as beat:
        beat.turns()
        leadership.grant(1)
        eventually(lambda: "no database" in caplog.text, what="the reason")
        turns, attempts = leadership.turns, len(wrapped_class.attempts)
        eventually(lambda: len(wrapped_class.attempts) > attempts, what="another attempt")
        assert leadership.turns == turns
        assert caplog.text.count("cannot be built (OSError: no database)") == 1
        wrapped_class.fail_building = False
        beat.sends(1)
        assert not beat.ended()


def test_a_wrapped_scheduler_that_raises_is_built_again(
    wrapped_class: type[Inner], caplog: pytest.LogCaptureFixture
) -> None:
    """Celery's beat ends with whatever its scheduler raises: a database that blinks, a Redis that is down."""
    app = make_app(neli_scheduler=wrapped_class, beat_schedule=DUE_AT_ONCE)
    leadership = FakeLeadership()
    leadership.predecessor_active = an_hour_ago()
    with caplog.at_level(logging.ERROR), Beat(app, leadership=leadership) as beat:
        leadership.grant(1)
        beat.sends(1)
        wrapped_class.fail_ticking = True
        eventually(lambda: "database gone" in caplog.text, what="the reason")
        wrapped_class.fail_ticking = False
        eventually(lambda: len(wrapped_class.built) > 1, what="another wrapped scheduler")
        beat.turns()
        assert len(beat.sent()) == 1, "what ran in this term runs no more"


def test_a_standby_goes_on_when_the_lease_ends_during_a_failure(wrapped_class: type[Inner]) -> None:
    wrapped_class.fail_ticking = True
    with Beat(make_app(neli_scheduler=wrapped_class, beat_schedule={})) as beat:
        beat.leadership.grant(1)
        eventually(lambda: wrapped_class.built, what="building")
        beat.leadership.revoke().join(3)
        assert not beat.leadership.held()
        beat.turns()


# -- what a successor knows -----------------------------------------------------------------------------------


def test_a_crontab_slot_in_the_gap_between_two_leaders_is_sent(tmp_path: Path) -> None:
    """Fresh entries count as run when the predecessor was last heard of, not when the successor built them."""
    kind = Kind(tmp_path)
    now = datetime.now(timezone.utc)
    slot = now.replace(second=0, microsecond=0)
    kind.leadership.predecessor_active = slot - timedelta(seconds=1)

    entries = {"slot": {"task": "t", "schedule": crontab()}, "interval": {"task": "u", "schedule": 7200.0}}
    with kind.beat(beat_schedule=entries) as beat:
        kind.leadership.grant(1)
        (headers,) = beat.sends(1)
        assert headers["neli_beat_entry"] == "slot"
        assert headers["neli_beat_slot"] == slot.isoformat()
        beat.turns()
        entries_sent = [each["neli_beat_entry"] for each in beat.sent()]
        assert entries_sent.count("slot") == 1 or datetime.now(timezone.utc).minute != slot.minute
        assert "interval" not in entries_sent


def test_an_interval_is_not_sent_early_by_a_successor(tmp_path: Path) -> None:
    """The predecessor may have sent it just before it was last heard of."""
    kind = Kind(tmp_path)
    kind.leadership.predecessor_active = datetime.now(timezone.utc) - timedelta(seconds=5)
    with kind.beat(beat_schedule={"entry": {"task": "t", "schedule": 6.0}}) as beat:
        kind.leadership.grant(1)
        beat.turns(4)
        assert beat.sent() == []
        due = kind.leadership.predecessor_active + timedelta(seconds=6)
        (headers,) = beat.sends(1)
        assert datetime.now(timezone.utc) >= due - timedelta(seconds=0.1)
        assert datetime.fromisoformat(headers["neli_beat_slot"]) == due


def test_without_a_predecessor_entries_count_as_run_now(tmp_path: Path) -> None:
    kind = Kind(tmp_path)
    kind.leadership.predecessor_active = None
    with kind.beat() as beat:
        kind.leadership.grant(1)
        beat.turns()
        assert beat.sent() == []


def test_a_predecessor_heard_of_in_the_future_delays_nothing(tmp_path: Path) -> None:
    """Clocks differ."""
    kind = Kind(tmp_path)
    kind.leadership.predecessor_active = datetime.now(timezone.utc) + timedelta(hours=1)
    with kind.beat(beat_schedule=DUE_EVERY_SECOND) as beat:
        kind.leadership.grant(1)
        beat.sends(1)


# -- Celery's own use -----------------------------------------------------------------------------------------


def test_a_task_that_runs_eagerly_is_not_run_after_the_term(plain: Kind) -> None:
    """task_always_eager passes by the producer: the lease is asked when the entry is applied, too."""
    ran: list[int] = []
    beat = plain.beat(task_always_eager=True)

    def task() -> None:
        ran.append(1)

    beat.app.task(name="t", shared=False)(task)
    with beat, lapse_when_logged("Sending due task", plain.leadership) as seen:
        plain.leadership.grant(1)
        eventually(lambda: seen, what="dispatch")
        beat.turns()
        assert ran == []
    plain.leadership.grant(2)


def test_a_task_that_runs_eagerly_runs_once(plain: Kind) -> None:
    ran: list[int] = []
    beat = plain.beat(task_always_eager=True)

    def task() -> None:
        ran.append(1)

    beat.app.task(name="t", shared=False)(task)
    with beat:
        plain.leadership.grant(1)
        eventually(lambda: ran, what="run")
        beat.turns()
        assert ran == [1]


class lapse_when_logged(logging.Handler):  # noqa: N801 - used as a context manager
    """Lose the lease when Celery logs a line that contains `words`: between the advance of an entry and its sending."""

    def __init__(self, words: str, leadership: FakeLeadership) -> None:
        super().__init__(logging.INFO)
        self.words, self.leadership, self.seen = words, leadership, []
        self.logger = logging.getLogger("celery.beat")
        self.level_before = self.logger.level

    def emit(self, record: logging.LogRecord) -> None:
        if self.words in record.getMessage():
            self.seen.append(record)
            self.leadership.lapse()

    def __enter__(self) -> list[logging.LogRecord]:
        self.logger.addHandler(self)
        self.logger.setLevel(logging.INFO)
        return self.seen

    def __exit__(self, *args: object) -> None:
        self.logger.removeHandler(self)
        self.logger.setLevel(self.level_before)


def test_entries_added_by_code_are_sent_in_every_term(plain: Kind) -> None:
    """Scheduler.add."""
    with plain.beat(beat_schedule={}) as beat:
        beat.scheduler.add(name="added", task="t", schedule=1800.0, last_run_at=an_hour_ago())
        plain.leadership.grant(1)
        (headers,) = beat.sends(1)
        assert headers["neli_beat_entry"] == "added"


def run_service(service: celery_beat.Service, act: Callable[[], None]) -> None:
    thread = threading.Thread(target=service.start, daemon=True)
    thread.start()
    act()
    service.stop()
    thread.join(8)
    assert not thread.is_alive()


def test_celerys_service_runs_it_and_closes_it(plain: Kind) -> None:
    """beat.Service, as `celery beat` starts it: effective_max_interval, ticks, close at the end."""
    beat = plain.beat()
    make = functools.partial(Scheduler, leadership=plain.leadership)
    service = celery_beat.Service(beat.app, max_interval=0.5, scheduler_cls=make)

    def act() -> None:
        eventually(lambda: plain.leadership.turns, what="a turn")
        plain.leadership.grant(1)
        beat.sends(1)

    run_service(service, act)
    assert plain.leadership.stopped == 1
    assert service.scheduler.max_interval == 0.5


def test_embedded_in_a_worker_it_stops_in_time(plain: Kind) -> None:
    """`celery worker -B` (on a thread; the process is the same Service)."""
    beat = plain.beat()
    embedded = celery_beat.EmbeddedService(
        beat.app, thread=True, scheduler_cls=functools.partial(Scheduler, leadership=plain.leadership)
    )
    embedded.start()
    plain.leadership.grant(1)
    beat.sends(1)
    embedded.stop()
    assert plain.leadership.stopped == 1
