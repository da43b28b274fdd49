"""The topics of an election: what each is created with, what makes an existing one unfit, and the commands for it.

Pure. `TopicAdmin` (topic_admin.py) finds them, verifies them and creates them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from celery_neli.config import WATCH, Config
from celery_neli.exceptions import TopicError

SHORT_RETENTION: Final = 3_600_000  # ms; the longest lease allowed is 300 s, and R7 needs records to outlive it by far
LARGE_SEGMENT: Final = 1 << 26  # bytes; only closed segments are compacted, and each beat that starts reads the rest

# A leader from outside the ISR would take records back that bought a lease, or said that a slot is settled. A member's
# clock may be wrong, and brokers refuse records from the future.
COMMON: Final = {"message.timestamp.type": "LogAppendTime", "unclean.leader.election.enable": "false"}
LEADER: Final = {"cleanup.policy": "delete", "retention.ms": "86400000", **COMMON}
SCHEDULE: Final = {
    "cleanup.policy": "compact",
    # Only closed segments are compacted, so a reader finds this much superseded in each partition: 10,000 states, read
    # in 0.1 s. Where 100,000 entries run every minute, a partition gets 0.75 MB a minute, and 3 MB of it count. (Kafka
    # allows no less than 1 MiB.)
    "segment.bytes": str(1 << 20),
    # Closes that of a quiet one, so that what was removed from the schedule does not stay on disk for a week.
    "segment.ms": "3600000",
    # Compact when a tenth is superseded; with the default, a half, a start would read twice as much as there is.
    "min.cleanable.dirty.ratio": "0.1",
    # A void definition (schedule_topic/versions.py) is not all that is left of an entry before it is repaired.
    "min.compaction.lag.ms": "60000",
    **COMMON,
}
SCHEDULE_PARTITIONS: Final = 17  # 16 for entries and their states, spread by name; the last for members and pauses
# No `COMMON`: a record that an unclean election takes back costs nothing but itself.
HISTORY: Final = {"cleanup.policy": "delete", "message.timestamp.type": "LogAppendTime"}
HISTORY_PARTITIONS: Final = 4


@dataclass(frozen=True, kw_only=True)
class TopicSpec:
    """A topic as it should be: what it is called, what each partition is for, and what other clean-up `does`."""

    what: str
    name: str
    partitions: int
    each: str
    settings: Mapping[str, str]
    servers: str
    does: str
    rights: tuple[str, ...] = ("Read", "Write")  # on the topic, without which a member can do nothing with it
    durable: bool = True  # what is lost in it would do harm

    def config(self, replicas: int | None) -> dict[str, str]:
        """Return what it is created with; `replicas`: how many, None if the brokers' default decides."""
        return {**self.settings, "min.insync.replicas": "2"} if replicas and self.durable else dict(self.settings)

    def create_command(self, *, replicas: int | None = None) -> str:
        """Return the `kafka-topics.sh` command that creates it as a member would."""
        factor = f" --replication-factor {replicas}" if replicas else ""
        settings = "".join(f" --config {name}={value}" for name, value in self.config(replicas).items())
        return f"{self.partitions_command('create')}{factor}{settings}"

    def partitions_command(self, verb: str = "alter") -> str:
        """Return the `kafka-topics.sh` command that gives it the partitions that it lacks."""
        return (
            f"kafka-topics.sh --bootstrap-server {self.servers} --{verb} --topic {self.name} "
            f"--partitions {self.partitions}"
        )

    def risks(self, values: Mapping[str, str]) -> Iterator[str]:
        """Yield what is risky in these values of its configuration. Raises `TopicError` if they make it unfit."""
        policy, wanted = values.get("cleanup.policy", ""), self.settings["cleanup.policy"]
        if policy not in ("", wanted):
            kept = {*COMMON, "retention.ms"}  # an operator may have set them on purpose
            fix = ",".join(f"{name}={value}" for name, value in self.settings.items() if name not in kept)
            reason = (
                f"The {self.what} {self.name} has cleanup.policy={policy}, which {self.does}; set it to {wanted}: "
                f"kafka-configs.sh --bootstrap-server {self.servers} --alter --entity-type topics --entity-name "
                f"{self.name} --add-config {fix}"
            )
            if self.durable:
                raise TopicError(reason)
            yield reason
        if not self.durable:
            return
        retention, segment = int(values.get("retention.ms", -1)), int(values.get("segment.bytes", 0))
        if wanted == "delete" and 0 <= retention < SHORT_RETENTION:
            yield f"retention.ms={retention} is short: an hour at least, a day is usual"
        if wanted == "compact" and segment > LARGE_SEGMENT:
            yield (
                f"segment.bytes={segment} is large: it is not compacted before, and every beat that starts reads it "
                f"all; {self.settings['segment.bytes']} is usual"
            )
        if values.get("unclean.leader.election.enable") == "true":
            yield "unclean.leader.election.enable=true may take records back: set it to false"


def leader_topic(config: Config) -> TopicSpec:
    """Return the leader topic: a partition for each role."""
    return TopicSpec(
        what="watch topic" if config.roles == (WATCH,) else "leader topic",
        name=config.topic,
        partitions=len(config.roles),
        each=f"there are {len(config.roles)} roles, one partition each",
        settings=LEADER,
        servers=str(config.properties["bootstrap.servers"]),
        does="removes the proof of who leads",
    )


def schedule_topic(config: Config) -> TopicSpec:
    """Return the schedule topic of a beat election: entries in 16 partitions, members' notes and pauses in the last."""
    return TopicSpec(
        what="schedule topic",
        name=config.schedule_topic,
        partitions=SCHEDULE_PARTITIONS,
        each=f"{SCHEDULE_PARTITIONS} are needed, {SCHEDULE_PARTITIONS - 1} for entries and one for members",
        settings=SCHEDULE,
        servers=str(config.properties["bootstrap.servers"]),
        does="deletes the schedule in time",
    )


def history_topic(config: Config, retention: float) -> TopicSpec:
    """Return the history topic of a beat election, which keeps records for `retention` seconds if a member makes it."""
    return TopicSpec(
        what="history topic",
        name=config.history_topic,
        partitions=HISTORY_PARTITIONS,
        each=f"{HISTORY_PARTITIONS} are needed",
        settings={**HISTORY, "retention.ms": str(round(retention * 1000))},
        servers=str(config.properties["bootstrap.servers"]),
        does="keeps only the last record of each entry",
        rights=("Write",),
        durable=False,
    )
