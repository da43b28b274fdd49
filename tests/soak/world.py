"""A beat under a clock of the test's own: everything that a schedule can hold, at a thousand tasks a second, into a
sink. Nothing here keeps anything that grows, so whatever grows is the scheduler's.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.app.amqp import Producer  # type: ignore[attr-defined]
from celery.schedules import crontab, schedule
from kombu.exceptions import OperationalError

from celery_neli.beat.scheduler import Scheduler
from celery_neli.config import Config
from celery_neli.election.role_state import Payload
from celery_neli.election.shared_lease import Standing
from celery_neli.periodic.definition import define
from celery_neli.schedule_topic.codec import ENTRY, STATE, encode_definition
from tests.unit.fakes import FakeRole

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from celery_neli.schedule_topic.codec import Kind

BEGIN = datetime(2026, 3, 1, 11, 59, 50, tzinfo=timezone.utc)
STEP = timedelta(milliseconds=10)
SECOND = timedelta(seconds=1)
#: One message of so many cannot be sent; one slot of so many seconds is the last of a term.
FAILS, TERM = 997, 5
#: Runtime entries that are put in a second: one-offs, and such as run every second until they are removed.
ONCE, EVERY, KEPT = 110, 20, 3
#: Turns without a message after which the clock goes on.
QUIET = 3


class Sink(Producer):  # type: ignore[misc]
    """Counts messages; refuses one now and then, as a broker that is lost."""

    sent = refused = 0

    def _publish(self, *args: Any, **kwargs: Any) -> None:
        if (Sink.sent + Sink.refused) % FAILS == FAILS - 1:
            Sink.refused += 1
            raise OperationalError("lost")
        Sink.sent += 1


class Leader(FakeRole):
    """Leads its one role in one term after another; what is offered is read back at once."""

    election = "beat"
    on_readback: Callable[[], None] | None = None
    term = 1

    def __init__(self) -> None:
        super().__init__("leader")
        self.config = Config(group="soak.beat", kafka="127.0.0.1:1", name="me")
        self.leads = True
        self._data: Mapping[str, Any] | None = None
        self._own = False

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def progress(self) -> None: ...
    def ask(self) -> None: ...
    def predecessor_active_until(self) -> None: ...

    def role(self, name: str) -> Leader:
        return self

    def standing(self) -> Standing:
        return Standing(term=self.term, until=time.monotonic() + 60, leading=self.leads, held=self.leads)

    @property
    def last_payload(self) -> Payload:
        return Payload(term=self.term, data=self._data, own=self._own, known=True)

    def set_payload(self, term: int, data: Mapping[str, Any], *, now: bool = False) -> None:
        self._data, self._own = data, True

    def lose(self) -> None:
        self.leads = self._own = False

    def win(self) -> None:
        self.term, self.leads = self.term + 1, True

    def wake(self) -> None:
        """Let the scheduler's next wait be over at once: the clock is ours."""
        if self.on_readback is not None:
            self.on_readback()


class Topic:
    """A schedule topic that is compacted at once."""

    generation = drained = whole = unsaved = 0
    torn = False

    def __init__(self) -> None:
        self.records: dict[tuple[Kind, str], bytes] = {}
        self._news: dict[tuple[Kind, str], bytes | None] = {}

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def forget_unsaved(self) -> None: ...
    def refuse(self, kind: Kind, name: str, error: Exception) -> None:
        raise AssertionError(f"{kind}/{name}: {error}")

    def drain(self) -> dict[tuple[Kind, str], bytes | None]:
        news, self._news = self._news, {}
        return news

    def fit(self) -> bool:
        return True

    def unready(self) -> str:
        return ""

    def read_to_end(self, timeout: float) -> bool:
        return True

    def saved(self, kind: Kind, name: str) -> bool:
        return True

    def flush(self, timeout: float) -> bool:
        return True

    def write(self, kind: Kind, name: str, value: bytes | None) -> None:
        if value is None:
            self.records.pop((kind, name), None)
        else:
            self.records[kind, name] = value
        if kind == ENTRY:  # a beat learns by reading which definition counts, its own too
            self._news[kind, name] = value

    def put(self, kind: Kind, name: str, value: bytes | None) -> None:
        """Somebody else writes."""
        self.write(kind, name, value)
        self._news[kind, name] = value


class World:
    """The beat, its leader, its topic and its clock."""

    def __init__(self, directory: Path) -> None:
        """`directory`: for results, of which there are none."""
        self.now = BEGIN
        self.leader, self.topic = Leader(), Topic()
        self.app = Celery("soak", broker="memory://", set_as_current=False, changes={})
        self.app.now = lambda: self.now
        self.app.conf.update(
            beat_schedule=self._schedule(),
            result_expires=None,
            task_publish_retry=False,
            neli_group="soak",
            result_backend=f"file://{directory}",
        )
        Sink.sent = Sink.refused = 0
        beat: Any = type("Beat", (Scheduler,), {"topic_factory": staticmethod(lambda *_: self.topic)})
        self.beat = beat(self.app, leadership=self.leader, Producer=Sink)
        self._seconds = 0

    def _schedule(self) -> dict[str, Any]:
        """A thousand slots a second, and some more a minute."""
        found: dict[str, Any] = {}

        def add(count: int, kind: str, when: Any, **fields: Any) -> None:
            for n in range(count):
                last = BEGIN - SECOND + SECOND * (n / count)
                found[f"{kind}{n}"] = {"task": "soak.task", "schedule": when, "last_run_at": last, **fields}

        add(350, "second", SECOND)
        add(150, "arguments", SECOND, args=(1, "two"), kwargs={"three": [3]})
        add(150, "options", SECOND, options={"expires": 30, "headers": {"x": "y"}, "neli_misfire": "fire_all"})
        add(100, "half", SECOND / 2, options={"neli_misfire": "skip"})
        add(100, "cron", crontab(app=self.app))
        add(20, "relative", schedule(10.0, relative=True, app=self.app))
        add(20, "overlap", 5.0, options={"neli_overlap": "skip", "neli_overlap_age": 8.0})
        return found

    def second(self) -> None:
        """One second of the clock, with all that happens in it."""
        self._change()
        for _ in range(SECOND // STEP):
            self.now += STEP
            self._turns()

    def _turns(self) -> None:
        """Turns, until a few of them bring nothing more: a turn may claim a slot, hand out messages, or await some."""
        quiet = 0
        while quiet < QUIET:
            before = Sink.sent + Sink.refused
            self.leader.wake()
            self.beat.tick()
            quiet = quiet + 1 if Sink.sent + Sink.refused == before else 0

    def _change(self) -> None:
        """Runtime entries come and go; one-offs go by themselves; every few seconds, another term begins."""
        self._seconds += 1
        for n in range(ONCE):
            self._put(f"once-{self._seconds}-{n}", f"at:{(self.now + SECOND * (1 + n / ONCE)).isoformat()}")
        for n in range(EVERY):
            self._put(f"every-{self._seconds}-{n}", "PT1S")
            for kind in (ENTRY, STATE):  # as `celery_neli.periodic.remove` does
                self.topic.put(kind, f"every-{self._seconds - KEPT}-{n}", None)
        if self._seconds % TERM == 0:
            self.leader.lose()
            self._turns()
            self.leader.win()

    def _put(self, name: str, when: str) -> None:
        definition = define(self.app, name, "soak.task", when, args=[name])
        since = {"since": self.now.timestamp()}
        self.topic.put(ENTRY, name, encode_definition(type(definition)(**{**_fields(definition), **since})))


def _fields(definition: Any) -> dict[str, Any]:
    return {name: getattr(definition, name) for name in definition.__dataclass_fields__}
