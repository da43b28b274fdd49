"""What goes wrong, and when: each fault of each machine comes by itself, after an exponentially distributed time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_neli.election.records import Record, encode
from tests.simulation import forgery

if TYPE_CHECKING:
    from tests.simulation.actor import Actor
    from tests.simulation.world import World

ACTOR_FAULTS = ("freeze", "no_write", "no_read", "missing", "restart", "close", "induce", "resign", "reread")
LOG_FAULTS = ("request", "purge", "truncate", "recreate", "forge")
GROUP_FAULTS = ("shuffle", "group_down")
FOREVER = 1e9


class Crash(Exception):
    """A process dies in the middle of what it does."""


def plan(world: World) -> None:
    """The first fault of each kind and machine."""
    for index in range(world.scenario.members):
        for kind in ACTOR_FAULTS:
            _again(world, kind, index)
    for role in range(world.scenario.roles):
        for kind in LOG_FAULTS:
            _again(world, kind, role)
    for kind in GROUP_FAULTS:
        _again(world, kind, 0)
    if world.scenario.newer:
        begins = world.rnd.uniform(0, world.scenario.newer)
        for number in range(100):  # its author goes on writing, so that those who start later meet it too
            world.fly(begins + number, world.rnd.randrange(world.scenario.roles), b'{"v":2,"kind":"vote"}')


def _again(world: World, kind: str, index: int) -> None:
    rate = getattr(world.scenario, kind)
    if rate:
        time = world.now + world.rnd.expovariate(rate)
        if time < world.scenario.calm:
            world.at(time, _happen, world, kind, index)


def _happen(world: World, kind: str, index: int) -> None:
    _again(world, kind, index)
    if kind in LOG_FAULTS:
        _to_log(world, kind, index)
        return
    if kind in GROUP_FAULTS:
        world.note("fault", kind)
        world.coordinator.shuffle() if kind == "shuffle" else world.coordinator.fail(world.rnd.uniform(0, 9))
        return
    actor = world.actors[index]
    if actor is not None:
        _to_actor(world, actor, kind)


def _to_actor(world: World, actor: Actor, kind: str) -> None:
    rnd = world.rnd
    lasts = rnd.choice((rnd.uniform(0, 9), rnd.uniform(0, 60)))
    world.note("fault", kind, actor.name, round(lasts, 3))
    until = world.now + lasts
    if kind in ("freeze", "no_write", "no_read", "missing"):
        actor.troubled = max(actor.troubled, until)
    if kind == "freeze":
        actor.frozen = max(actor.frozen, until)
    elif kind == "no_write":
        actor.no_write = until
    elif kind == "no_read":
        actor.no_read = until
    elif kind == "missing":
        actor.no_topic = until
    elif kind == "restart":
        world.bury(actor)
    elif kind == "close":
        if actor.closing_at is None:
            actor.close()
            world.wake(actor, 0.001)
    elif kind == "induce":
        actor.group.assign(some(world), rnd.uniform(0, world.scenario.group_delay))
    elif kind == "reread":
        actor.reread_now = True
    elif kind == "resign" and actor.frozen <= world.now:
        actor.member.resign(rnd.choice((None, *world.roles)))
        world.wake(actor, 0.005)


def _to_log(world: World, kind: str, role: int) -> None:
    rnd, log = world.rnd, world.logs[role]
    if kind == "request":
        named = [actor.name for actor in world.actors if actor is not None]
        record = Record(kind="request", member="cli/x", seq=0, lease=0.0, to=rnd.choice([None, "nobody", *named]))
        world.fly(world.now + 0.01, role, encode(record))
        return
    world.note("fault", kind, "role", role)
    if kind == "purge":
        log.purge()
    elif kind == "truncate" and len(log.values) - log.low > 3:
        log.truncate(rnd.randrange(1, min(6, len(log.values) - log.low)))
        _cut(world, role, all_readers=False)
    elif kind == "recreate":
        log.values, log.when, log.low = [], [], 0
        _cut(world, role, all_readers=True)
    elif kind == "forge":
        world.fly(world.now + 0.001, role, forgery.forge(world, role))


def _cut(world: World, role: int, *, all_readers: bool) -> None:
    for actor in world.actors:
        if actor is not None and world.scenario.noticed:
            at = actor.journal.positions[role]
            at.cut = at.cut or all_readers or (at.offset or 0) > len(world.logs[role].values)


def _contradict(world: World) -> None:
    """Everybody begins to read, and a record that no sound log holds arrives before anybody looks at what was read."""
    for actor in world.actors:
        if actor is not None:
            world.bury(actor)
    for log in world.logs:
        log.values += [b"junk"] * 3
        log.when += [world.now - world.scenario.bundled] * 3
        end = len(log.values)
        stray = Record(kind="beat", member="stranger/1", seq=0, lease=1.0, term=end, seen=end)
        log.values.append(encode(stray))
        log.when.append(world.now)
        world.after(world.rnd.uniform(0, 0.1), log.purge)


def some(world: World) -> frozenset[int]:
    """The roles that a group may assign to a member: none, some, all."""
    return frozenset(role for role in range(world.scenario.roles) if world.rnd.random() < 0.5)


def end(world: World) -> None:
    """The faults are over, but for those that last for ever."""
    world.calm = True
    now = world.now
    world.note("calm")
    if world.scenario.contradicted:
        _contradict(world)
    actors = [actor for actor in world.actors if actor is not None]
    for actor in actors:
        actor.frozen, actor.no_read, actor.no_write = (
            min(actor.frozen, now),
            min(actor.no_read, now),
            min(actor.no_write, now),
        )
        actor.no_topic, actor.last_write = 0.0, 0.0
        actor.due = float("-inf")
    leaders = [actor for actor in actors if actor.holds(0, now)]
    world.hasten()
    who, _, what = world.scenario.forever.partition(" ")
    victim = None
    if who == "leader":
        victim = (leaders or actors or [None])[0]
    elif who == "one":
        victim = world.rnd.choice(actors) if actors else None
    elif who == "unknown":
        victim = actors[0] if actors else None
    if victim is not None:
        world.note("fault", "for ever", what, victim.name)
        victim.troubled = FOREVER
        if what == "deaf":
            victim.no_read = FOREVER
        else:
            victim.no_write = FOREVER
    for index, actor in enumerate(world.actors):
        if actor is None:
            world.start(index)
            continue
        world.wake(actor, world.rnd.uniform(0.001, 0.02))
