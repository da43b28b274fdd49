"""Three beats with entries of 1 s and of a minute; the leader, or the brokers under it, are struck, again and again.

Whatever happens, with `neli_misfire = "fire_all"`: every slot is sent; none with two ids; none twice with the same id,
unless a successor told that it was in doubt. With `neli_in_doubt = "skip"` none twice, and those that are missing were
told, each of them.

NELI_FAILOVER_ROUNDS: how many faults in each of five settings, all kinds in turn: 40, say, which takes half an hour. By
default one of each of the first kinds on Redis, and one on RabbitMQ.
"""

from __future__ import annotations

import os
import random
import time
from itertools import cycle, islice
from typing import TYPE_CHECKING

import pytest

from tests.failover.strikes import (
    SHORT,
    STRIKES,
    freeze,
    kill_kafka_node,
    pause,
    sigkill,
    sigkill_without_broker,
    sigterm,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.failover.conftest import Rigs
    from tests.failover.rig import Rig
    from tests.failover.strikes import Strike

pytestmark = [pytest.mark.smoke, pytest.mark.slow]
ROUNDS = int(os.environ.get("NELI_FAILOVER_ROUNDS", "0"))
CLUSTER = (sigkill, kill_kafka_node, sigterm, freeze)
SETTINGS: dict[tuple[str, str, int], Sequence[Strike]] = {
    ("redis", "send", 1): STRIKES,
    ("redis", "skip", 1): STRIKES,
    ("rabbitmq", "send", 1): STRIKES,
    ("rabbitmq", "skip", 1): STRIKES,
    ("redis", "send", 3): CLUSTER,
}
DEFAULT: dict[tuple[str, str, int], Sequence[Strike]] = {
    ("redis", "send", 1): SHORT,
    ("rabbitmq", "skip", 1): (sigkill_without_broker,),
}


@pytest.mark.timeout(600 + 60 * ROUNDS)
@pytest.mark.parametrize(
    ("broker", "in_doubt", "nodes", "strikes"),
    [
        pytest.param(*setting, tuple(islice(cycle(strikes), ROUNDS or len(strikes))), id="-".join(map(str, setting)))
        for setting, strikes in (SETTINGS if ROUNDS else DEFAULT).items()
    ],
)
def test_no_slot_is_lost_and_none_is_doubled_in_silence(
    rigs: Rigs, broker: str, in_doubt: str, nodes: int, strikes: Sequence[Strike]
) -> None:
    """Rounds of: three beats, one of which leads; a fault; a leader again, and slots of every entry."""
    with rigs(broker, nodes=nodes, neli_in_doubt=in_doubt) as rig:
        rig.top_up()
        rig.members.wait_leader()
        rig.wait_flow()
        for number, strike in enumerate(strikes):
            play(rig, strike, number)
        verdict = rig.verdict()
    print(f"{broker}, {in_doubt}, {nodes} Kafka nodes: {len(strikes)} rounds, {verdict}")
    if in_doubt == "skip":
        assert not verdict.doubled


def play(rig: Rig, strike: Strike, number: int) -> None:
    """One round."""
    began = time.monotonic()
    rig.top_up()
    leader = rig.members.wait_leader()
    chance = random.Random(number)  # the same each time
    pause(chance.random())
    if chance.random() < 0.5:
        rig.wait_message()  # in the midst of sending
    strike(rig, leader)
    rig.wait_flow()
    verdict = rig.verdict()
    if verdict.faults:  # what is late is not missing
        rig.wait_flow()
        verdict = rig.verdict()
    print(f"{number} {strike.__name__}: {time.monotonic() - began:.1f} s; {verdict}", flush=True)
    where = f"after round {number}, {strike.__name__}, see {rig.members.directory}"
    assert not verdict.faults, f"{where}: {verdict.story}"


def test_a_scheduler_that_keeps_nothing_loses_slots(rigs: Rigs) -> None:
    """The control: with Celery's own scheduler inside, a handover costs slots, and the judge sees it."""
    with rigs("redis", neli_scheduler="celery.beat.Scheduler") as rig:
        rig.top_up()
        leader = rig.members.wait_leader()
        rig.wait_flow()
        sigkill(rig, leader)
        rig.wait_flow()
        assert rig.verdict().missing
