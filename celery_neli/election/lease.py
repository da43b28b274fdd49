"""The rules of the election, R1 to R9, for one role: a fold over records and time (docs/protocol.md).

A `Lease` uses no thread, no clock and no Kafka. Its owner feeds it each record with the local time at which it was
read, and sends what `tick` returns. Times are seconds on one local clock that never stops (R8).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from celery_neli.config import Config
from celery_neli.election.records import Record, repeatable

boottime = partial(time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
"""Return seconds on a clock that never goes back and, where the system has one, counts a suspended machine (R8)."""
NOTHING = -1  # the offset before the first
NEVER = float("-inf")
FOREVER = float("inf")
CLOCK_RATES = 1.01  # two clocks may differ in rate by this factor (R2)


def name_of(member: str) -> str:
    """Return the name in a member's identity, which is its name, a slash and a nonce."""
    return member.rpartition("/")[0] or member


class _Unjudged(NamedTuple):
    offset: int
    record: Record
    now: float
    before: int


class Lease:
    """What one member knows of one role, and what it may do; for one thread.

    The owner sets `induced` while the group assigns it the role (R2), and `candidate` while it may claim at all.
    """

    def __init__(self, member: str, timing: Config, *, delay: Callable[[], float] | None = None) -> None:
        """Know nothing, as `member`; `delay` draws the seconds for the induced one (default: `takeover_delay`)."""
        self.timing = timing
        self.induced = False
        self.candidate = True
        self._draw = delay or (lambda: timing.takeover_delay)
        self._others = NEVER  # when the last lease of other members that may be running has run out (R7)
        self._floor = NEVER  # no claim before: inherited from a log that is gone (R7)
        self._forget(member)

    def _forget(self, member: str) -> None:
        self.member = member
        self.start: int | None = None  # first offset that is read; None: reading has not begun
        self.oldest = False  # there is nothing to read before `start`
        self.known = False  # R7: the state below is exact
        self.caught_up = False  # the log was read to its end, since the last own claim if there was one
        self.lost: str | None = None  # why this log is not the one that was read (R9)
        self.newest = NOTHING  # offset of the last record read, of whatever kind
        self.last = NOTHING  # offset of the last effective record
        self.term = NOTHING  # offset of the effective claim
        self.holder: str | None = None
        self.data: Mapping[str, Any] | None = None  # of the last effective record that carried any, without `idle`
        self._seq = 0
        self._sent: dict[int, float] = {}  # own records under way: seq -> time of sending (R1)
        self._vacant = NEVER  # R2: from when the role counts as vacant, if nothing more is read
        self._next_heartbeat = NEVER
        self._claimed_at: float | None = None
        self._favoured: str | None = None  # the member for which the holder was asked to resign
        self._unjudged: list[_Unjudged] = []
        self._end_term()

    def _end_term(self) -> None:
        self.until = NEVER  # end of the own lease
        self.resigning = self._drained = False
        self._drain_end = FOREVER
        self._released = False  # a release was sent; it may have taken effect
        self.requested: str | None = None  # the holder was asked to resign, for this name or identity ("": for any)
        self.data_out: Mapping[str, Any] | None = None  # goes into the next record of a holder
        self.live = False  # a record of the holder was read after the end of the log, so it is recent
        self._heartbeat_early = False  # the next heartbeat leaves before its time
        self._awaited: int | None = None  # number of the own early heartbeat that was not read back yet
        self._data_seq = NOTHING
        self._delay = self._draw()

    # Reading

    def begin(self, offset: int, now: float, *, oldest: bool) -> None:
        """Start to read at `offset`, or start again from further back; `oldest`: the log holds nothing older."""
        if offset > 0:
            # An empty log proves nothing: a lease of our own length may be running (R7).
            self._others = max(self._others, now + self.timing.heartbeat_timeout * CLOCK_RATES)
        self.start, self.oldest, self.lost = offset, oldest or offset == 0, None
        self.known = offset == 0  # nothing ever came before
        self.newest, self.last, self.term, self.holder = offset - 1, NOTHING, NOTHING, None
        self.caught_up, self.data, self._vacant, self._favoured = False, None, NEVER, None
        self._end_term()
        self._unjudged.clear()

    def read(self, offset: int, record: Record | None, now: float) -> None:
        """Fold the record at `offset`, read at `now`; None stands for bytes that all readers skip alike (R9).

        Set `lost` if the record shows that the log is not the one read before.
        """
        if offset <= self.newest or self.lost is not None or self.start is None:
            return
        before, self.newest = self.newest, offset
        if record is None:
            return
        if record.refers >= offset:
            self.lost = f"the record at offset {offset} refers to offset {record.refers}"
            return
        if record.member == self.member and record.seq > self._seq:
            self.lost = f"the record at offset {offset} has this member's name and was never sent"
            return
        if record.kind == "request":
            # One that names its term and comes late, or twice, must not hit the next holder.
            meant = offset > self.term and record.term in (None, self.term)
            if self.known and meant and self.holder is not None:
                self.requested = record.to or ""
                self._favoured = record.to
            return
        if record.member != self.member and record.kind != "release":
            self._others = max(self._others, now + record.lease * CLOCK_RATES)
        if self.known:
            self._fold(_Unjudged(offset, record, now, before))
            return
        self._unjudged.append(_Unjudged(offset, record, now, before))
        self._certify(offset, record, before)

    def _certify(self, offset: int, record: Record, before: int) -> None:
        """R7: know the state, if `record` proves it."""
        start = NOTHING if self.start is None else self.start
        seen, term = record.seen, record.term
        if record.end is not None and before < record.end:
            self.last = offset - 1
        elif record.kind != "claim" and seen is not None and term is not None and seen >= start - 1:
            # Its author held the role when `seen` was the last effective record; nothing since was missed here.
            self.holder, self.term, self.last = record.member, term, seen
        else:
            return
        self.known = True
        unjudged, self._unjudged = self._unjudged, []
        for each in unjudged:
            if each.offset > self.last and self.lost is None:
                self._fold(each)

    def _fold(self, read: _Unjudged) -> None:
        record, now = read.record, read.now
        mine = record.member == self.member
        sent = self._sent.pop(record.seq, None) if mine else None
        if record.kind == "claim":
            if mine and record.seq == self._seq:
                self._claimed_at = None
            if read.before >= record.end if record.end is not None else record.seen != self.last:
                return  # void: something (effective) came in between
            self.term, self.holder = read.offset, record.member
            self._end_term()
            self._favoured = None
        else:
            term = NOTHING if record.term is None else record.term
            if term > self.term or (term == self.term and self.holder not in (None, record.member)):
                # A claim took effect that was judged void here: never lead on such knowledge (R9).
                self.lost = f"the record at offset {read.offset} names a leader that this member does not know"
                return
            if term != self.term or self.holder is None:
                return  # a deposed holder's, or one from after its release
        self.last = read.offset
        self.live = self.live or self.caught_up
        self._claimed_at = None  # a claim under way is void by now
        self._take(record)
        if mine and self._awaited is not None and record.seq >= self._awaited:
            self._awaited = None
        if record.kind == "release":
            self.holder = None
            self._end_term()
            # R4: stand back, but only for the head start of the member that was asked for by name.
            stands_back = mine and (self._favoured is None or self._favours_me)
            self._vacant = now + (self.timing.heartbeat_timeout if stands_back else 0)
        elif not mine:
            self._vacant = now + record.lease * CLOCK_RATES  # R2: the holder's lease, not the reader's setting
        elif sent is not None:
            self.until = max(self.until, sent + self.timing.heartbeat_timeout)  # R1

    def _take(self, record: Record) -> None:
        """Keep the newest data of a term, as a member repeats them: a late heartbeat must not move them back."""
        if record.data is not None and record.seq > self._data_seq:
            self.data, self._data_seq = repeatable(record.data), record.seq

    @property
    def data_own(self) -> bool:
        """Return True if `data` is from a record of this member's own, present term."""
        return self.holder == self.member and self._data_seq != NOTHING

    def end(self) -> None:
        """Note that the log was read to its end."""
        self.caught_up = self.start is not None

    # Another log (R9)

    def restart(self, member: str, now: float) -> None:
        """After `lost`: go on behind the record that showed it, as the new `member`, and never look further back.

        Only one that was `known` or read from the `oldest` on may: it has met every lease that may be running.
        """
        offset = self.newest + 1
        self.lose(member)
        self.begin(offset, now, oldest=True)

    def reread(self) -> None:
        """Know nothing until `begin`, which names a lower offset of the same log."""
        self.start, self.lost, self.caught_up = None, None, False

    def lose(self, member: str) -> None:
        """Know nothing, as the new `member`, until `begin`: the position is gone from the log."""
        self._floor = self._others = max(self._others, self.until, self._floor)
        self._forget(member)

    # Acting

    def held(self, now: float) -> bool:
        """Return True if work in flight may finish (R3)."""
        return self.holder == self.member and not self._released and self.lost is None and now < self.until

    def leading(self, now: float) -> bool:
        """Return True if new work may start (R3)."""
        return self.held(now) and not self.resigning

    def resign(self, now: float) -> None:
        """Stop leading at once; release after `drained` or `drain_timeout` (R4). Without effect unless leading."""
        if self.leading(now):
            self.resigning, self._drained, self._drain_end = True, False, now + self.timing.drain_timeout

    def drained(self) -> None:
        """Let a resigning holder release: its barrier returned."""
        self._drained = self.resigning

    @property
    def asked(self) -> bool:
        """Return True if the holder was asked to resign for another member."""
        return self.requested not in (None, self.name, self.member)

    @property
    def led_by_another(self) -> bool:
        """Return True if the log was read to its end and another member holds the role."""
        return self.known and self.caught_up and self.lost is None and self.holder not in (None, self.member)

    def may_be_held(self, now: float) -> bool:
        """Return True unless the lease of the last holder has run out, by the records that were read (R2)."""
        return self.holder is not None and now < (self.until if self.holder == self.member else self._vacant)

    def ask(self) -> Record:
        """Return a request to the holder of this term to resign for this very member. The caller must send it."""
        self._seq += 1
        return Record(kind="request", member=self.member, seq=self._seq, lease=0.0, to=self.member, term=self.term)

    def heartbeat_now(self) -> None:
        """Let the next heartbeat leave at the next tick; then it is `awaited`."""
        self._next_heartbeat, self._heartbeat_early = NEVER, True

    def awaited(self, now: float) -> bool:
        """Return True if an early heartbeat was sent and not read back yet."""
        return self._awaited is not None and self.held(now)

    def claiming(self, now: float) -> bool:
        """Return True if a claim is under way and may still be judged."""
        return self._claimed_at is not None and now - self._claimed_at < self.timing.heartbeat_timeout

    def heartbeat_due(self, now: float) -> bool:
        """Return True if a heartbeat is due."""
        return self.held(now) and now >= self._next_heartbeat

    def tick(self, now: float, *, early: float = 0.0) -> Record | None:
        """Return the record that is due, if any; a heartbeat also if it is due within `early` seconds.

        It must be sent after this call and never before `now`: the lease counts from `now` (R1).
        """
        if self.lost is not None or self.start is None:
            return None
        if self.holder == self.member and now < self.until:  # R5: send heartbeats only while held
            releasing = self.resigning and not self._released and (self._drained or now >= self._drain_end)
            if now < self._next_heartbeat - early and not releasing:
                return None
            self._released |= releasing
            self._next_heartbeat = now + self.timing.heartbeat_interval
            data = self.data if self.data_out is None else self.data_out
            if self._heartbeat_early:
                self._heartbeat_early, self._awaited = False, self._seq + 1
            return self._record("release" if self._released else "beat", now, term=self.term, seen=self.last, data=data)
        if not self.caught_up or now < self._claim_time():
            return None
        self._claimed_at, self.caught_up = now, False
        if self.known:
            return self._record("claim", now, seen=self.last, data=self.data)
        return self._record("claim", now, end=self.newest + 1, data=self.data)

    def wake(self, now: float) -> float:
        """Return when, if nothing is read, `tick` may next return a record or a question of R3 changes its answer."""
        if self.lost is not None or self.start is None:
            return FOREVER
        if self.holder == self.member and now < self.until:
            if self.resigning and self._drained and not self._released:
                return now
            drain_end = self._drain_end if self.resigning and not self._released else FOREVER
            return min(self._next_heartbeat, self.until, drain_end)
        return self._claim_time() if self.caught_up else FOREVER

    def _claim_time(self) -> float:
        """Return from when this member may claim, if nothing else changes (R2, R7)."""
        if not self.candidate or not (self.known or self.oldest):
            return FOREVER
        vacant = self._vacant if self.known else self._others
        if self.holder == self.member:
            if self.resigning:
                vacant = self.until + self.timing.heartbeat_timeout  # R4: the release was lost
        else:
            vacant = max(vacant, self._floor)
        if self._claimed_at is not None:
            vacant = max(vacant, self._claimed_at + self.timing.heartbeat_timeout)
        return vacant + self._head_start()

    def _head_start(self) -> float:
        """Return the seconds that this member lets others go first: the one asked for by name, then the induced one."""
        if self._favoured is not None:
            # a leader of other roles reads the release half an interval late (Renewal._pause)
            late = self.timing.takeover_delay + self.timing.heartbeat_interval / 2
            return 0.0 if self._favours_me else self._delay + late
        return 0.0 if self.induced else self._delay

    @property
    def _favours_me(self) -> bool:
        return self._favoured in (self.name, self.member)

    @property
    def name(self) -> str:
        """The member's name, without its nonce."""
        return name_of(self.member)

    def _record(self, kind: Any, now: float, **more: Any) -> Record:
        self._seq += 1
        self._sent[self._seq] = now
        for seq in [seq for seq, sent in self._sent.items() if sent + self.timing.heartbeat_timeout < now]:
            del self._sent[seq]  # read back now, it would not extend the lease
        return Record(kind=kind, member=self.member, seq=self._seq, lease=self.timing.heartbeat_timeout, **more)
