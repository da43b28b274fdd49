"""Three beats of one election with their brokers, a reader of what they send, and what was told meanwhile."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import psutil

from tests.failover import judge
from tests.failover.logs import doubts_in
from tests.failover.reader import Reader
from tests.processes import wait_until
from tests.smoke.members import members

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tests.brokers.server import Server
    from tests.kafka.cluster import KafkaCluster
    from tests.smoke.members import Members, Process

BEATS = 3
ENTRIES = 20
PERIODS = {
    **{f"second-{number}": timedelta(seconds=1) for number in range(ENTRIES)},
    "minutely": timedelta(minutes=1),
}
QUICK = frozenset(entry for entry, period in PERIODS.items() if period == timedelta(seconds=1))
SENDERS = 4
"""neli_publish_parallel: so many messages may be without an answer when the task broker goes."""


@dataclass(kw_only=True)
class Rig:
    """Beats, which come and go, on brokers, which do too. Not thread-safe; most methods block."""

    members: Members
    broker: Server
    kafka: KafkaCluster
    reader: Reader
    outages: list[judge.Outage] = field(default_factory=list)
    _gone: datetime | None = None

    def top_up(self) -> None:
        """Start beats until there are three."""
        while len(self.members.alive) < BEATS:
            self.members.beat()

    def broker_goes(self, *, kill: bool = False) -> None:
        """End the task broker; it keeps what it has acknowledged."""
        self.reader.pause()
        self._gone = now() - timedelta(seconds=2)  # what was late for its slot
        if kill:
            self.broker.kill()
        else:
            self.broker.stop()

    def broker_comes(self) -> None:
        """Start the task broker again, and go on reading."""
        self.broker.start()
        assert self._gone is not None, "it had gone"
        self.outages.append(judge.Outage(start=self._gone, end=now(), connections=SENDERS))
        self.reader.resume()

    @contextmanager
    def mute_broker(self) -> Iterator[None]:
        """Meanwhile the task broker takes what it is sent, and does nothing with it until later."""
        self.reader.pause()
        (process,) = listening(int(self.broker.url.rpartition(":")[2].partition("/")[0]))
        process.suspend()
        try:
            yield
        finally:
            process.resume()
            self.reader.resume()

    def wait_flow(self, *, timeout: float = 60.0) -> None:
        """Wait until every entry of a second was sent for a slot that is later than now."""
        since = now()
        read = len(self.reader.messages)
        waiting = set(QUICK)

        def flows() -> bool:
            nonlocal read
            self.reader.check()
            new = self.reader.messages[read:]
            read += len(new)
            waiting.difference_update(each.entry for each in new if each.slot > since)
            return not waiting

        wait_until(flows, timeout=timeout, what=f"slots of {sorted(waiting)}, see {self.members.directory}")

    def wait_message(self) -> None:
        """Wait for the next message."""
        read = len(self.reader.messages)
        wait_until(lambda: len(self.reader.messages) > read, timeout=60, what="a message", interval=0.001)

    def wait_standby(self, beat: Process, *, timeout: float = 30.0) -> None:
        """Wait until a beat, which is there, does not hold."""
        wait_until(lambda: not beat.holds(), timeout=timeout, what=f"{beat.name} to see that it leads no more")

    def doubts(self) -> list[judge.Doubt]:
        """What all beats have told."""
        return [doubt for beat in self.members.all for doubt in doubts_in(beat.log, beat=beat.name)]

    def verdict(self, periods: Mapping[str, timedelta] = PERIODS) -> judge.Verdict:
        """Judge all that was sent so far for these entries."""
        messages = self.reader.messages[:]
        verdict = judge.judge(messages, periods, doubts=self.doubts(), outages=self.outages)
        never = QUICK - {each.entry for each in messages}
        assert not never, f"never sent: {sorted(never)}"
        return verdict


def listening(port: int) -> set[psutil.Process]:
    """The processes that listen on a port of this machine."""
    found = psutil.net_connections("tcp4")
    return {psutil.Process(each.pid) for each in found if each.status == "LISTEN" and each.laddr.port == port}


def now() -> datetime:
    """The time, aware."""
    return datetime.now(timezone.utc)


@contextmanager
def a_rig(
    directory: Path, broker: Server, kafka: KafkaCluster, url: str, options: dict[str, Any], **settings: Any
) -> Iterator[Rig]:
    """A rig with these settings, ended at the end."""
    given = {
        "failover_entries": ENTRIES, "neli_kafka": kafka.bootstrap_servers,
        "broker_url": url, "broker_transport_options": options, "neli_misfire": "fire_all", "neli_misfire_max": 10_000,
        "neli_publish_parallel": SENDERS, "task_ignore_result": True, **settings,
    }  # fmt: skip
    with (
        members(directory, project="tests.failover.project", **given) as started,
        Reader(url, directory / "messages") as reader,
    ):
        yield Rig(members=started, broker=broker, kafka=kafka, reader=reader)
