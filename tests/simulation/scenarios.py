"""What goes wrong in each scenario. Rates are events per second and member; durations are seconds of true time."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One kind of weather. Faults come until `calm`; from then on the members must come to rest (see judge.py)."""

    leases: tuple[float, ...] = (1.5, 2.5, 5.0)
    takeover: tuple[float, ...] = (0.0, 0.25, 1.0)
    drain_timeout: float = 2.0
    rebalance_after: float = 1e6  # seconds; 1e6: nobody asks for a role
    spread: bool = False  # the group spreads the roles (coordinator.py), and in the end each is where it wants it
    shuffle: float = 0.0  # the group moves every role; per second, as the next
    group_down: float = 0.0
    members: int = 4
    roles: int = 1
    calm: float = 32.0
    after: float = 8.0  # watched for so long after the bound of liveness
    retention: float = 9.0
    freeze: float = 0.015
    stumble: float = 0.002  # probability that a step is interrupted by a freeze in its middle
    no_write: float = 0.015
    no_read: float = 0.015
    restart: float = 0.05
    down: float = 0.0  # mean time that a crashed member stays away
    close: float = 0.01
    induce: float = 0.03
    group_delay: float = 0.5  # callbacks of the group come up to so late
    resign: float = 0.02
    request: float = 0.01
    drop: float = 0.5  # loss while writes are cut
    double: float = 0.0
    late: float = 0.0  # probability that a record takes up to 20 s
    latency: float = 1.0  # of appends and reads, against 1 to 40 ms
    loss: float = 0.0  # probability that a record is lost on its way
    fifo: bool = True  # each producer's records keep their order
    reread: float = 0.0
    bundled: float = (
        0.0  # a reader begins up to so many seconds before it is asked, and tells of the end as it was then
    )
    contradicted: bool = False  # in the calm, one that begins meets a contradiction behind the end, and all expires
    missing: float = 0.0  # the journal raises TopicError for a while
    purge: float = 0.0  # all records are deleted; per second, as the next three
    truncate: float = 0.0
    noticed: bool = True
    recreate: float = 0.0
    forge: float = 0.0
    long_data: bool = False  # forged records carry about as much as a record may
    newer: float = 0.0  # a record of a newer protocol version appears, once, about so late
    overrun: float = 0.1  # probability that a barrier outlasts drain_timeout
    idle: int = 0  # so many records were in the log once, and expired
    stagger: float = 0.0  # members start within this time
    start_back: tuple[int, int] = (1, 8)
    rates: tuple[float, float] = (0.996, 1.004)
    extreme: bool = False  # only the two rates
    forever: str = ""  # from `calm` on: "leader deaf", "leader mute", "one deaf", "one mute", "unknown deaf"
    leads: bool = True  # somebody must lead in the end
    one_leader: bool = True  # overlaps are judged: not where records are forged
    terms_rise: bool = True  # not where the log is cut off
    slots: bool = True  # slots are judged: not where records are lost
    slot_roles: int = 1  # so many roles, the first, have slots
    skew: float = 0.3  # the machines' wall clocks differ from true time by up to so many seconds
    publish_fails: float = 0.05  # probability that a publish fails, half of them on the wire, to be tried again
    crash: float = 0.01  # ... that a process dies right after a publish, or after the state of a slot was sent
    state_lost: float = 0.1  # ... that the state of an entry never reaches the schedule topic
    state_late: float = 0.1  # ... that it takes up to 8 s
    imports: bool = False  # an entry is imported, once, whose first slots are older than itself


BASE = Scenario()
NOTHING = replace(
    BASE, freeze=0, stumble=0, no_write=0, no_read=0, restart=0, close=0, induce=0, resign=0, request=0, overrun=0
)
ROUGH = replace(BASE, double=0.1, fifo=False, late=0.05, resign=0.1)
SLOTS = replace(
    BASE, restart=0.1, down=1.0, close=0.04, resign=0.08, late=0.02, publish_fails=0.15, crash=0.03, state_lost=0.3,
    state_late=0.3, skew=3.0,
)  # fmt: skip
ORDERLY = replace(NOTHING, close=0.06, induce=0.1, resign=0.06, request=0.03, down=1.0)
SPREAD = replace(
    NOTHING, roles=8, spread=True, rebalance_after=3.0, takeover=(0.5,), leases=(1.5, 2.5), calm=15, restart=0.04,
    close=0.04, down=1.5,
)  # fmt: skip

SCENARIOS: dict[str, Scenario] = {
    "base": BASE,
    "weekend": replace(
        BASE,
        idle=10,
        stagger=1.5,
        calm=15,
        members=5,
        late=0.15,
        no_read=0.15,
        restart=0.15,
        down=3.0,
        resign=0,
        leases=(2.0, 6.0),
    ),
    "newcomer-deaf": replace(NOTHING, idle=10, calm=0.02, members=4, forever="unknown deaf"),
    "blind-claims": replace(BASE, down=20.0, restart=0.1, late=0.05),
    "rough": ROUGH,
    "reread": replace(BASE, reread=1.0, resign=0.1),
    "purged": replace(BASE, purge=0.2, restart=0.15, no_write=0.06, freeze=0.03, slots=False, leases=(3.0,)),
    "leader-deaf": replace(BASE, forever="leader deaf"),
    "leader-mute": replace(BASE, forever="leader mute"),
    "one-deaf": replace(BASE, forever="one deaf"),
    "one-mute": replace(BASE, forever="one mute"),
    "two-leader-deaf": replace(BASE, members=2, forever="leader deaf"),
    "alone": replace(BASE, members=1, restart=0, no_write=0.08, resign=0.3, close=0, calm=40),
    "truncated-noticed": replace(BASE, truncate=0.04, terms_rise=False, slots=False),
    "truncated": replace(BASE, truncate=0.04, noticed=False, terms_rise=False, slots=False),
    "group": replace(BASE, induce=2.0, group_delay=5.0, roles=2),
    "roles": replace(BASE, roles=3, slot_roles=3, late=0.02, double=0.02),
    "orderly": ORDERLY,
    "spread": SPREAD,
    "spread-churn": replace(SPREAD, calm=20, shuffle=0.25, group_down=0.05, stagger=8.0, late=0.05, double=0.1),
    "spread-few": replace(SPREAD, members=5, roles=2, shuffle=0.1, freeze=0.03, stumble=0.01, overrun=0.3),
    "spread-rough": replace(
        BASE,
        induce=0,
        roles=4,
        spread=True,
        rebalance_after=3.0,
        takeover=(0.5,),
        calm=20,
        shuffle=0.1,
        group_down=0.03,
    ),
    "drains": replace(ROUGH, drain_timeout=1.5, stumble=0.01, overrun=0.6, resign=0.3, request=0.05),
    "stumbles": replace(BASE, stumble=0.03, late=0.05),
    "look-back": replace(
        BASE,
        start_back=(0, 3),
        leases=(1.5, 5.0),
        restart=0.2,
        no_write=0.06,
        close=0.05,
        down=1.0,
        double=0.2,
        late=0.1,
        fifo=False,
    ),
    "topic-missing": replace(BASE, missing=0.03),
    "forged": replace(BASE, forge=0.5, one_leader=False, slots=False),
    "forged-rough": replace(ROUGH, forge=0.5, reread=0.1, one_leader=False, slots=False, roles=2),
    "bundled": replace(
        BASE,
        members=2,
        calm=8.0,
        forge=2.0,
        bundled=2.0,
        contradicted=True,
        start_back=(0, 2),
        restart=0.4,
        one_leader=False,
        slots=False,
    ),
    # forged, and no scheduler replaces what a claim repeats
    "long-data": replace(BASE, forge=0.5, long_data=True, one_leader=False, slots=False, slot_roles=0),
    "newer-version": replace(BASE, newer=16.0, leads=False, roles=2),
    "clocks": replace(
        NOTHING,
        rates=(0.995, 1.005),
        extreme=True,
        leases=(8.0,),
        takeover=(0.0,),
        members=2,
        no_write=0.08,
        drop=1.0,
        latency=0.02,
        calm=60,
    ),
    "lossy": replace(BASE, loss=0.3, members=2, resign=0.1, restart=0.02),
    "slots": SLOTS,
    "imports": replace(SLOTS, imports=True, crash=0.2, state_lost=0.5),
    "unlike": replace(BASE, leases=(1.5, 3.0, 8.0), takeover=(0.0, 1.4), late=0.05),
}
