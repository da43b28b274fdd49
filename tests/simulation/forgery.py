"""Records that no member wrote: junk, and true records with something changed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from celery_neli.election.records import MAX_DATA

if TYPE_CHECKING:
    from tests.simulation.world import World

JUNK = (
    b"",
    b"{}",
    b"[]",
    b"null",
    b"\xff\xfe",
    b'{"v":1}',
    b'{"v":1,"kind":"beat"}',
    b"[" * 5000,
    b'{"v":1,"v":1}',
    b'{"v":1.0}',
)
LARGEST_LEASE = 8.0


def forge(world: World, role: int) -> bytes:
    """Something for the log of `role`; mostly such that the rules have to look twice."""
    rnd, log = world.rnd, world.logs[role]
    recent = [
        json.loads(value)
        for value in log.values[max(log.low, len(log.values) - 12) :]
        if value.startswith(b'{"v":1,"kind"') and value.endswith(b"}")
    ]
    recent = [record for record in recent if "seen" in record]
    if not recent or rnd.random() < 0.1:
        return rnd.choice(JUNK)
    record = rnd.choice(recent)
    end = len(log.values)
    for _ in range(rnd.randrange(1, 4)):
        what = rnd.choice(("member", "seq", "kind", "lease", "seen", "term", "data"))
        if what == "member":
            record["member"] = rnd.choice([each["member"] for each in recent] + ["stranger/1"])
        elif what == "seq":
            record["seq"] = max(0, record["seq"] + rnd.choice((-3, -1, 1, 2, 1000)))
        elif what == "kind":
            record["kind"] = rnd.choice(("claim", "beat", "release"))
        elif what == "lease":
            record["lease"] = rnd.choice((0.001, 1.0, LARGEST_LEASE, -1, 0, 301, "4", None, True))
        elif what in ("seen", "term"):
            record[what] = rnd.choice((-1, 0, end - 2, end - 1, end, end + 1, end + 1000, None, 1.5))
        else:
            record["data"] = rnd.choice((None, {"claimed": 0, "done": 0}, {"claimed": 1e18, "done": -1}, [], "x"))
    if world.scenario.long_data and rnd.random() < 0.5:
        claim = {"v": 1, "kind": "claim", "member": "stranger/1", "seq": end, "lease": 1.0, "seen": end - 1}
        data = {"claimed": 0, "done": 0, "x": ""}
        data["x"] = "x" * (MAX_DATA - len(json.dumps(data)) - rnd.randrange(12))
        return json.dumps({**claim, "data": data}).encode()
    if record["kind"] != "claim":
        record.setdefault("term", end - 1)
    elif record.get("seen", 0) is None:
        record["end"] = rnd.choice((0, end, end + 1, max(0, end - 1)))
    if record.get("lease") == LARGEST_LEASE:
        world.forged_lease = LARGEST_LEASE
    value = json.dumps(record).encode()
    if rnd.random() < 0.1:
        value += rnd.choice((b'{"data":{"claimed":1e400}}', b" ", b"x"))
    return value
