"""Beats with the replicated scheduler on a clock that the test moves; they share an election, a topic and a broker.

Nothing of a beat is faked but Kafka and the wire: its runners, hosts, schedulers and publishers are the real ones.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, NamedTuple

from kombu import Producer

from celery_neli.beat.replicated.host import ReplicatedHost, SharedSchedule
from celery_neli.beat.replicated.standalone import ReplicatedScheduler
from celery_neli.beat.role_runner import RoleRunner
from celery_neli.beat.tenure import LeaseEnded, Wakeup
from celery_neli.beat.wrapped import add_to
from celery_neli.config import Config, beat_settings, shard_roles
from celery_neli.schedule_topic.codec import ENTRY, PAUSE, STATE, State, encode_state
from tests.unit.elections import FakeElection, FakeMember
from tests.unit.fakes import FakeTopic
from tests.unit.schedulers import make_app
from tests.unit.schedules import Editor

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from celery_neli.schedule_topic.codec import Kind
    from celery_neli.schedule_topic.write import Write

NOON = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
START = NOON.timestamp()


def seconds(until: float, every: float = 1.0, first: float = 1.0) -> list[float]:
    """The slots of an interval from the first one on, up to that time."""
    return [first + n * every for n in range(int((until - first) / every) + 1)]


class Crash(BaseException):
    """The process is killed at this very place."""


class Sent(NamedTuple):
    """A message that reached the broker: seconds since noon, entry, slot (seconds since noon), term, task id."""

    at: float
    entry: str
    slot: float
    term: int
    id: str


class World:
    """The clock (seconds since noon), the broker, and what the beats share. ``conf``: settings of each of them."""

    def __init__(self, schedule: Mapping[str, Any] | None = None, **conf: Any) -> None:
        self.now = 0.0
        self.schedule = {
            name: each if isinstance(each, dict) else {"task": "t", "schedule": each}
            for name, each in (schedule or {}).items()
        }
        self.conf = {"neli_publish_parallel": 1, "timezone": "UTC", **conf}
        self.election = FakeElection(self.clock)
        #: Heartbeat interval (seconds); as long as a test about days needs.
        self.interval = 0.5
        self.log: list[Any] = []
        self.sent: list[Sent] = []
        self.beats: list[Process] = []
        #: Called with the name of the entry just before, and just after its message reaches the broker.
        self.before_wire: Callable[[str], object] = lambda entry: None
        self.after_wire: Callable[[str], object] = lambda entry: None
        self._lock = threading.Lock()

    def clock(self) -> float:
        return START + self.now

    def time(self) -> datetime:
        return NOON + timedelta(seconds=self.now)

    def beat(
        self, schedule: Mapping[str, Any] | None = None, *, shards: int = 1, added: Iterable[Any] = (), **conf: Any
    ) -> Process:
        """A further beat. It stands by from now on."""
        beat = Process(self, f"beat-{len(self.beats)}", schedule, shards, list(added), {**self.conf, **conf})
        self.beats.append(beat)
        return beat

    def leader(self, schedule: Mapping[str, Any] | None = None, **conf: Any) -> Process:
        """A further beat, which leads from now on."""
        beat = self.beat(schedule, **conf)
        beat.member.lead()
        return beat

    def ticks(self, until: float) -> None:
        """Everybody ticks, sleeping as told; the clock stands at that time then."""
        for _ in range(50_000):
            self.election.catch_up()
            wait = min((beat.turn() for beat in self.beats), default=math.inf)
            if wait <= 0:
                continue
            then = min(self.now + wait, self.election.next_event() - START)
            if then > until:
                self.now = max(self.now, until)
                self.election.catch_up()
                return
            self.now = max(math.ceil(then * 1e6) / 1e6, self.now)  # a clock ticks in microseconds
        raise AssertionError("it never waited")

    def arrive(self, headers: Mapping[str, Any]) -> None:
        """A message is on the wire."""
        entry = headers["neli_beat_entry"]
        self.before_wire(entry)
        slot = (datetime.fromisoformat(headers["neli_beat_slot"]) - NOON).total_seconds()
        with self._lock:
            self.sent.append(Sent(self.now, entry, slot, headers["neli_beat_term"], headers["id"]))
        self.after_wire(entry)

    def slots(self, entry: str = "e", *, term: int | None = None) -> list[float]:
        """The slots of an entry in the order in which they were sent."""
        return [each.slot for each in self.sent if each.entry == entry and term in (None, each.term)]

    def doubled(self) -> dict[tuple[str, float], int]:
        """Slots that were sent more than once."""
        counts = Counter((each.entry, each.slot) for each in self.sent)
        return {key: count for key, count in counts.items() if count > 1}

    def state(self, entry: str = "e") -> State:
        """What the schedule topic says of an entry; `last` in seconds since noon."""
        states = FakeTopic(self.log).states()
        found = states[entry]
        return State(found.last - START, found.runs, found.epoch, found.since and found.since - START, found.open)

    def put_state(self, entry: str, last: float, **fields: Any) -> None:
        """Somebody else writes a state."""
        given = {"runs": 0, "epoch": 0, **fields}
        self.log.append((STATE, entry, encode_state(State(last=START + last, **given)), None))

    def marks(self, role: str = "leader") -> tuple[float, float]:
        """Claimed and done, in seconds since noon, as the newest record has them."""
        data = self.election.role(role).data
        assert data is not None
        return round(data["claimed"] - START, 6), round(data["done"] - START, 6)

    def edit(self) -> Editor:
        """For one change of the runtime schedule by another process."""
        least = self.conf.get("neli_least_interval", 1.0)
        conf = {"timezone": "UTC", "neli_least_interval": least, "neli_scheduler": None}
        conf["result_backend"] = self.conf.get("result_backend")
        app = make_app(beat_schedule=self.schedule, **conf)
        return Editor(app, _Store(self.log), by="test", clock=self.clock)

    def put(self, name: str, schedule: Any, **fields: Any) -> None:
        """Define an entry at runtime, or change it."""
        given = {"args": (), "kwargs": None, "options": None, **fields}
        self.edit().put(name, "t", schedule, given["args"], given["kwargs"], given["options"])


class _Store:
    def __init__(self, log: list[Any]) -> None:
        self._log = log

    def read(self, *, keep: Callable[[str], bool] | None = None) -> Mapping[tuple[Kind, str], bytes]:
        values = FakeTopic(self._log).values()
        return {entry: value for entry, value in values.items() if keep is None or keep(entry[1])}

    def look(
        self, names: Collection[str], *, kinds: Sequence[Kind] = (ENTRY, STATE), fresh: bool = True
    ) -> Mapping[tuple[Kind, str], bytes]:
        found = {(kind, name): value for kind, name, value, _ in self._log if name in names and kind in kinds}
        return {entry: value for entry, value in found.items() if value is not None}

    def write(self, writes: list[Write]) -> set[str]:
        self._log.extend((each.kind, each.name, each.value, None) for each in writes)
        return set()

    def pauses(self) -> Mapping[str, bytes]:
        found = {name: value for kind, name, value, _ in self._log if kind == PAUSE}
        return {name: value for name, value in found.items() if value is not None}

    def size(self, name: str) -> int:
        return 0


class Process:
    """One beat process, as `celery_neli.Scheduler` is made of its parts, without its thread."""

    def __init__(
        self,
        world: World,
        name: str,
        schedule: Mapping[str, Any] | None,
        shards: int,
        added: list[Any],
        conf: Mapping[str, Any],
    ) -> None:
        self.world = world
        entries = world.schedule if schedule is None else World(schedule).schedule
        conf = dict(conf)
        scheduler = conf.pop("scheduler", ReplicatedScheduler)
        self.app = make_app(beat_schedule={key: dict(each) for key, each in entries.items()}, **conf)
        self.app.now = world.time
        config = Config(
            group="test.beat", kafka="127.0.0.1:1", name=name, roles=shard_roles(shards),
            heartbeat_interval=world.interval, heartbeat_timeout=8 * world.interval,
        )  # fmt: skip
        self.member = FakeMember(world.election, config)
        self.topic = FakeTopic(world.log)
        self.wakeup = Wakeup(config.roles)
        self.shared = SharedSchedule(config=config, settings=beat_settings(self.app), topic=self.topic)
        self.dead = False

        class Wire(Producer):  # type: ignore[misc]
            def _publish(self, body: Any, priority: Any, kind: Any, encoding: Any, headers: Any, *args: Any) -> None:
                world.arrive(headers)

        roles = [self.member.role(role) for role in config.roles]
        self.hosts = [
            ReplicatedHost(
                app=self.app, cls=scheduler, roles=roles, shard=shard, shared=self.shared,
                options={"schedule": None, "max_interval": None, "Producer": Wire},
                made=lambda scheduler: add_to(scheduler, added),
            )
            for shard in range(shards)
        ]  # fmt: skip
        self.runners = [
            RoleRunner(role=role, host=host, wakeup=self.wakeup, progress=self.member.progress)
            for role, host in zip(roles, self.hosts, strict=True)
        ]

    # -- what tests ask of it --

    @property
    def roles(self) -> tuple[str, ...]:
        return self.member.config.roles

    @property
    def schedulers(self) -> list[Any]:
        """The schedulers of all shards, leading or not."""
        return [host.scheduler for host in self.hosts if host.scheduler is not None]

    @property
    def scheduler(self) -> Any:
        """The scheduler of the first shard, leading or not."""
        return self.hosts[0].scheduler

    def serves(self, role: str = "leader") -> bool:
        """Whether a scheduler of this beat sends what is due in the role."""
        return next(runner for runner in self.runners if runner.role.name == role).serves

    def fails(self) -> bool:
        """Whether the first role makes no progress."""
        return self.runners[0].failing

    @property
    def leads(self) -> bool:
        """Whether a term of the first role has begun here and goes on."""
        return self.hosts[0].leads

    @property
    def in_doubt(self) -> int:
        """Slots that were in doubt when a term began here."""
        return 0 if self.scheduler is None else self.hosts[0].ledger.in_doubt

    @property
    def left_out(self) -> int:
        return int(self.scheduler.neli_engine.left_out.total)

    @property
    def last_sent(self) -> dict[str, float]:
        """The slot of the last task that was sent, of entries that ask whether it has finished."""
        return dict(self.hosts[0].ledger.states.sent)

    def static(self) -> list[Any]:
        """The entries of beat_schedule."""
        return list(self.hosts[0].ledger.states.static())

    def names(self) -> set[str]:
        """The entries of the first shard, paused or not."""
        scheduler = self.scheduler
        return set() if scheduler is None else {*scheduler.schedule, *self.scheduler.neli_engine.table.paused}

    def is_down(self, role: str) -> bool:
        """Whether a handover of the role would wait for nothing."""
        return self.wakeup.ended[role].is_set()

    def close(self) -> None:
        """It is to end: nothing more starts."""
        self.wakeup.closing = True

    def forget_fences(self) -> None:
        self.wakeup.fenced.clear()

    def use(self, topic: Any) -> None:
        """Follow this schedule topic, instead of the fake one. Before the first turn."""
        self.shared.topic = topic

    def note(self) -> None:
        """Write which schedule this member has, if it is time to."""
        self.shared.note()

    def stop(self) -> None:
        self.shared.stop()

    def entry(self, name: str = "e") -> Any:
        """The entry, of whatever shard."""
        return next(each.schedule[name] for each in self.schedulers if name in each.schedule)

    # -- what happens to it --

    def turn_role(self, shard: int = 0) -> float | None:
        """One turn of one role: seconds until the next; None: it is not led."""
        return self.runners[shard].turn()

    def turn(self) -> float:
        """One turn of each role: seconds until the next."""
        if self.dead:
            return math.inf
        waits = []
        for runner in self.runners:
            try:
                wait = runner.turn()
            except LeaseEnded:
                runner.end_term()
                wait = 0.0
            except Crash:
                self.crash()
                return math.inf
            if runner.failing and not runner.serves:
                wait = max(wait or 0.0, 1.0)  # the real topic's read_to_end waits; a pause after a failure is real time
            waits.append(math.inf if wait is None else wait)
        return min(waits)

    def crash(self, *, arrives: bool = True) -> None:
        """Killed: what it had sent ``arrives`` or not, nothing else does."""
        self.dead = True
        for runner in self.runners:
            if self.world.election.role(runner.role.name).holder is self.member:
                self.member.vanish(runner.role.name, arrives=arrives)

    def hand_over(self, role: str = "leader") -> None:
        """A clean end of the term."""
        self.member.drain(role)
        for runner in self.runners:
            if runner.role.name == role:
                runner.turn()
        self.member.release(role)

    def fence(self, role: str = "leader") -> None:
        """The lease is lost; the process goes on, and notices with its next turn."""
        self.wakeup.fenced[role] = self.world.election.role(role).term or 0
        self.member.vanish(role)
