"""How many runs of an entry have failed in a row, by the records of the history. Pure: no clock, no thread, no Kafka.

A process that takes over the watch has read the history of the last minutes only. So the first failure of an entry that
it sees makes it ask for what was before, unless a success was seen, or the entry was made or resumed since.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from celery_neli.history.records import FAILED, SUCCEEDED, RunRecord

MOST: Final = 100  # failures of an entry that are remembered; `neli_pause_on_failure` is no higher
REMEMBERED: Final = 50_000  # entries that have failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """When an entry is paused: after so many failed runs in a row (`most`). Those of slots up to `since` (Unix seconds)
    do not count: it was made, resumed or given its schedule then. `version` names its definition, "" for none.
    """

    most: int
    since: float = 0.0
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a run ended, and when (Unix seconds)."""

    id: str
    at: float
    slot: float | None
    failed: bool
    task: str = ""
    error: str = ""

    @classmethod
    def of(cls, record: RunRecord) -> End:
        """Return the end that a record tells of."""
        token = record.id or f"{record.slot!r}"
        failed = record.state == FAILED
        return cls(
            id=token, at=record.at, slot=record.slot, failed=failed, task=record.task, error=record.error
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """An entry has failed so often that it is to be paused (`count`); or what was before must be looked up (None)."""

    entry: str
    rule: Rule
    count: int | None
    last: End


@dataclass(slots=True)
class _Story:
    failed: OrderedDict[str, End] = field(default_factory=OrderedDict)  # since the last success
    good_at: float = float("-inf")  # when that was
    whole: bool = False  # there are no failures before these
    paused: Rule | None = None  # it was paused by this rule already


class Failures:
    """The failed runs of entries. For one thread."""

    def __init__(self, *, since: float) -> None:
        """`since`: from which time on (Unix seconds) the records come."""
        self._since = since
        self._stories: OrderedDict[str, _Story] = OrderedDict()
        #: Entries to judge, and not before which time (Unix seconds).
        self._changed: dict[str, float] = {}

    def __bool__(self) -> bool:
        return bool(self._changed)

    def record(self, record: RunRecord) -> None:
        """Note how a run ended. What is neither a success nor a failure for good, such as a retry, is passed over."""
        if record.state == FAILED:
            self._note(record.entry, End.of(record))
            self._changed[record.entry] = record.at
        elif record.state == SUCCEEDED and record.entry in self._stories:
            self._note(record.entry, End.of(record))

    def before(self, name: str, ends: Iterable[End]) -> None:
        """Note what the history says of the time before."""
        for end in ends:
            self._note(name, end)
        self._story(name).whole = True
        self._changed.setdefault(name, 0.0)

    def paused(self, name: str, rule: Rule) -> None:
        """Note that the entry was paused by this rule: it is not paused by it again."""
        self._story(name).paused = rule

    def again(self, name: str, at: float) -> None:
        """Judge the entry again at that time (Unix seconds)."""
        self._changed[name] = at

    def judge(self, rule_of: Callable[[str], Rule | None], until: float) -> list[Verdict]:
        """Return what is to be done, each once. `rule_of` returns the rule of an entry as of `until` (Unix seconds),
        None for one that has none or is paused.
        """
        found = []
        for name in [name for name, at in self._changed.items() if at <= until]:
            del self._changed[name]
            rule = rule_of(name)
            story = self._stories.get(name)
            if rule is None or story is None or rule == story.paused:
                continue
            failed = [each for each in story.failed.values() if _counts(each, rule.since)]
            if not failed:
                continue
            last = max(failed, key=lambda each: each.at)
            if len(failed) >= rule.most:
                found.append(Verdict(entry=name, rule=rule, count=len(failed), last=last))
            elif not story.whole and rule.since < self._since:
                found.append(Verdict(entry=name, rule=rule, count=None, last=last))
        return found

    def _story(self, name: str) -> _Story:
        story = self._stories.get(name)
        if story is None:
            story = self._stories[name] = _Story()
            if len(self._stories) > REMEMBERED:
                self._stories.popitem(last=False)
        return story

    def _note(self, name: str, end: End) -> None:
        story = self._story(name)
        if not end.failed:
            if end.at > story.good_at:
                story.good_at, story.whole = end.at, True
                for each in [each for each in story.failed.values() if each.at <= end.at]:
                    del story.failed[each.id]
        elif end.at > story.good_at:
            story.failed[end.id] = end
            if len(story.failed) > MOST:
                del story.failed[min(story.failed.values(), key=lambda each: each.at).id]


def _counts(end: End, since: float) -> bool:
    """Return True if the run is of a slot after that time; one by hand counts by when it ended."""
    return (end.at if end.slot is None else end.slot) > since
