"""The rules taken out one at a time: in some scenario each must be missed, with a verdict."""

# ruff: noqa: E501  text that is searched for is not broken
from __future__ import annotations

import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celery_neli.beat.replicated import claims
from celery_neli.election import lease, member, role_state
from tests.simulation import dispatcher
from tests.simulation.judge import Failure
from tests.simulation.world import run

SEEDS = 60
COPIED = {
    "lease": lease,
    "role_state": role_state,
    "claims": claims,
    "member": member,
    "dispatcher": dispatcher,
}
"""In the order of their imports. The last is the scheduler of the simulation, with the rules of a successor."""


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """`text` stands once in the module `where`; `put` in its place, a run of `scenario` ends with a verdict among `kinds`."""

    name: str
    scenario: str
    text: str
    put: str
    where: str = "lease"
    kinds: tuple[str, ...] = (
        "overlap",
        "stuck",
        "events",
        "unbought",
        "release",
        "slot",
        "terms",
        "claim",
        "request",
        "crash",
        "busy",
    )
    seed: int = 0  # the first that is tried


# Not in the table, for only one run in hundreds would tell, or another rule steps in: reading to the end before each claim, the leases
# seen by a blind claimant, data that end with their term, and what else is done about another log (a record from its future, a what is
# inherited, a new name, reading it again, what comes while it looks back, what follows a newer version). tests/unit/test_lease.py and
# test_member.py have them one by one.
MUTANTS = (
    # The rules of the fold
    Mutant(name="a lease counts from the send", scenario="base", text="self.until = max(self.until, sent + ", put="self.until = max(self.until, now + "),
    Mutant(name="a lease ends", where="role_state", scenario="base", text='finish."""\n        return now < self.until', put='finish."""\n        return self.until != NEVER'),
    Mutant(name="claims are compare-and-set", scenario="base", text="else record.seen != self.last:", put="else False:"),
    Mutant(
        name="wait for the lease announced", scenario="unlike", text="self._vacant = now + record.lease * CLOCK_RATES",
        put="self._vacant = now + self.timing.heartbeat_timeout * CLOCK_RATES",
    ),
    Mutant(name="clocks differ", scenario="clocks", text="self._vacant = now + record.lease * CLOCK_RATES", put="self._vacant = now + record.lease", seed=20),
    Mutant(name="held ends when the release leaves", scenario="orderly", text="and not self._released and self.lost", put="and self.lost"),
    Mutant(name="a lost release ends", scenario="alone", text="vacant = self.until + self.timing.heartbeat_timeout  #", put="return FOREVER  #"),
    Mutant(name="stand back after a release", scenario="alone", text="(self.timing.heartbeat_timeout if stands_back else 0)", put="0"),
    Mutant(name="stand back after a lost release", scenario="lossy", text="vacant = self.until + self.timing.heartbeat_timeout  #", put="vacant = self.until  #", seed=45),
    Mutant(name="beat only while held", scenario="leader-deaf", text="if self.holder == self.member and now < self.until:  # R5", put="if self.holder == self.member:  # R5"),
    Mutant(name="a release is released", scenario="alone", text="self._released = False  #", put="self._released = vars(self).get('_released', False)  #"),
    Mutant(name="a barrier has an end", scenario="drains", text="(self._drained or now >= self._drain_end)", put="self._drained"),
    Mutant(name="a barrier is awaited", scenario="drains", text="(self._drained or now >= self._drain_end)", put="True"),
    Mutant(name="what was read is read", scenario="reread", text="if offset <= self.newest or self.lost", put="if self.lost"),
    # R7
    Mutant(name="certificates", scenario="look-back", text="term is not None and seen >= start - 1:", put="term is not None:"),
    Mutant(name="who starts late knows nothing", scenario="look-back", text="self.known = offset == 0", put="self.known = True"),
    Mutant(name="what was read before the certificate counts", scenario="look-back", text="if each.offset > self.last and", put="if False and"),
    Mutant(name="blind claims are compare-and-set", scenario="newcomer-deaf", text="if read.before >= record.end if", put="if False if"),
    Mutant(name="an empty log proves nothing", scenario="purged", text="self._others = max(self._others, now + self.timing.heartbeat_timeout * CLOCK_RATES)", put="pass"),
    Mutant(name="looking back", where="member", scenario="look-back", text="lease.oldest):\n                self._look_back(state)", put="lease.oldest):\n                pass"),
    Mutant(name="who stands aside reads no more", where="member", scenario="newer-version", text="if lease.caught_up and not (", put="if not (", kinds=("busy",)),
    Mutant(name="the end is asked for", where="member", scenario="alone", text="self._journal.ask_end(state.index)", put="pass"),
    # R9
    Mutant(name="a record from the future is noticed", scenario="forged", text='refers to offset {record.refers}"\n            return', put='"\n            self.lost = None', seed=140),
    Mutant(name="an unknown leader is noticed", scenario="truncated", text='self.lost = f"the record at offset {read.offset} names', put='_ = f"the record at offset {read.offset} names', seed=50),
    Mutant(name="a newer version: stand aside", where="member", scenario="newer-version", text="self.outdated = True", put="pass"),
    # The member
    Mutant(
        name="the grant is void before the release leaves", where="member", scenario="orderly", text="            state.publish()\n            if record is not None:\n",
        put="            if record is not None:\n",
    ),
    Mutant(name="who closes does not claim", where="member", scenario="orderly", text="self.candidate and not self.closing and", put="self.candidate and"),
    Mutant(name="who closes resigns", where="member", scenario="orderly", text="(lease.asked or not lease.candidate)", put="lease.asked"),
    Mutant(name="who closes awaits its claim", where="member", scenario="orderly", text="state.lease.held(now) or state.lease.claiming(now) for", put="state.lease.held(now) for", seed=110),
    Mutant(name="a barrier frees", where="role_state", scenario="orderly", text="self._drained = True\n            self.lease.drained()", put="self._drained = True"),
    Mutant(name="a late barrier frees no later term", where="role_state", scenario="drains", text=" and self.announced is not None and term in (None, self.announced)", put="", seed=35),
    Mutant(name="nobody told, nobody drains", where="role_state", scenario="orderly", text="lease.drained()  # this term was never", put="pass  # this term was never", seed=12),
    Mutant(name="a revocation is told", where="role_state", scenario="orderly", text="yield LeaderRevoked(self.role, self.announced)", put="pass"),
    Mutant(name="a fence is told", where="role_state", scenario="base", text="yield LeaderFenced(self.role, term, why(self, now))", put="pass"),
    # Asking for a role
    Mutant(name="who asks has waited", where="role_state", scenario="spread", text="now - self._since < self._wait", put="False"),
    Mutant(name="who has asked waits again", where="role_state", scenario="spread", text="        self._since = now\n        return", put="        return"),
    Mutant(name="only who is assigned the role asks", where="role_state", scenario="spread", text="lease.induced and lease.candidate", put="lease.candidate"),
    Mutant(name="a new term is watched anew", where="role_state", scenario="spread-churn", text="term = lease.term if wishes", put="term = 0 if wishes"),
    Mutant(name="who slept watches anew", where="role_state", scenario="spread-few", text="awake and lease", put="lease"),
    Mutant(name="who closes does not ask", where="role_state", scenario="spread", text=" and lease.candidate", put="", seed=48),
    Mutant(name="a request is about one term", scenario="spread-churn", text="record.term in (None, self.term)", put="True"),
    Mutant(name="who asks goes first", scenario="spread", text="self._favoured in (self.name, self.member)", put="False"),
    # Slots
    Mutant(name="late data are ignored", scenario="rough", text="and record.seq > self._data_seq", put=""),
    Mutant(name="a claim repeats the data", scenario="base", text="seen=self.last, data=self.data)", put="seen=self.last)"),
    Mutant(name="what is repeated leaves room for what is added", scenario="long-data", text="repeatable(record.data), record.seq", put="record.data, record.seq"),
    Mutant(name="data are counted by term", scenario="base", text="        self._data_seq = NOTHING\n        self._delay", put="        self._delay"),
    Mutant(name="a term repeats what its claim has found", where="role_state", scenario="slots", text="lease.data if lease.data_out is None else lease.data_out", put="lease.data_out"),
    Mutant(name="a slot is published once its claim was read back", where="claims", scenario="slots", text="slot <= min(self._read, self._claimed)", put="slot <= self._claimed"),
    Mutant(name="claimed does not go back", where="claims", scenario="slots", text="Offer(Watermarks(self._claimed, self._settled), hurry)", put="Offer(Watermarks(self._claimed if hurry else self._settled, self._settled), hurry)", seed=14),
    Mutant(name="done waits for what is not settled", where="claims", scenario="slots", text="min(now, unsettled - MICROSECOND)", put="now"),
    Mutant(name="done waits for the entries", where="claims", scenario="slots", text="if self._resolved:", put="if True:"),
    Mutant(name="a clean release leaves no doubt", where="claims", scenario="slots", text="max(self._settled, self._doubtful), NEVER", put="self._claimed, NEVER"),
    Mutant(name="a clean release leaves the doubt that it found", where="claims", scenario="slots", text="max(self._settled, self._doubtful), NEVER", put="self._settled, NEVER", seed=60),
    Mutant(name="what was on the wire stays in doubt", where="dispatcher", scenario="slots", text="self.perhaps[name] = slot", put="pass", seed=25),
    Mutant(name="what was found in doubt stays so", where="dispatcher", scenario="slots", text="attempted=max(perhaps, found)", put="attempted=perhaps"),
    Mutant(name="untried is what nobody has tried since", where="claims", scenario="slots", text="if marks is None or marks.attempted is not None else", put="if marks is None else"),
    Mutant(name="a successor heeds doubt", where="dispatcher", scenario="slots", text="slots.skip and slot <= self.claims.inherited.doubtful", put="False"),
    Mutant(name="a successor heeds done", where="dispatcher", scenario="slots", text="max(state.last, self.claims.inherited.settled)", put="state.last", seed=13),
    Mutant(name="done says nothing of an open entry", where="dispatcher", scenario="slots", text="state.last if state.open else max(", put="max("),
    Mutant(name="that an entry is open is confirmed before done passes it", where="dispatcher", scenario="slots", text="items() if opening.confirmed}", put="items()}"),
    Mutant(name="an entry is open until it has caught up", where="dispatcher", scenario="slots", text="if self.due[name] > self.claims.settled:", put="if True:", seed=7),
    Mutant(name="an entry is open until it has caught up with done", where="dispatcher", scenario="slots", text="if self.due[name] > self.claims.settled:", put="if self.due[name] > now:", seed=400),
    Mutant(name="what no leader had is not in doubt", where="dispatcher", scenario="imports", text=" and defined <= self.claims.inherited.claimed", put=""),
    Mutant(name="an imported slot waits for a claim behind the import", where="dispatcher", scenario="imports", text="self.claims.covers(max(slot, defined))", put="self.claims.covers(slot)"),
    Mutant(name="what is released was written", where="dispatcher", scenario="slots", text="for name in self.unwritten}", put="for name in ()}", seed=55),
)  # fmt: skip


def mutated(mutant: Mutant) -> tuple[Any, Any]:
    """The classes `Member` and `Dispatcher` of copies of `COPIED`, one of them changed."""
    modules = {}
    for name, module in COPIED.items():
        source = Path(module.__file__).read_text()
        if mutant.where == name:
            if source.count(mutant.text) != 1:
                raise AssertionError(
                    f"{mutant.name}: {mutant.text!r} stands {source.count(mutant.text)} times in {name}.py"
                )
            source = source.replace(mutant.text, mutant.put)
        for copied in COPIED:
            source = source.replace(
                f"from {COPIED[copied].__name__} import", f"from tests.simulation.mutant_{copied} import"
            )
        copy = modules[name] = types.ModuleType(f"tests.simulation.mutant_{name}")
        sys.modules[copy.__name__] = copy  # dataclasses look their module up
        exec(compile(source, copy.__name__, "exec"), copy.__dict__)  # noqa: S102  our own source
    return modules["member"].Member, modules["dispatcher"].Dispatcher


def find(mutant: Mutant, seeds: int = SEEDS) -> str | None:
    """The verdict on `mutant` in the first run that ends with one; None if all are sound."""
    classes = mutated(mutant)
    for seed in range(mutant.seed, mutant.seed + seeds):
        try:
            run(mutant.scenario, seed, *classes)
        except Failure as failure:
            if failure.kind in mutant.kinds:
                return str(failure)
    return None
