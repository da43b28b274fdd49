"""The story of a slot as a value, and as lines for a terminal."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import tzinfo
from typing import Any

from celery_neli.explain.words import Words, named
from celery_neli.history.runs import Run
from celery_neli.timeline import Claim


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """What became of a slot. `ran`: its task was sent; None if that cannot be known. `verdict` is one word or two, the
    same for the same outcome; `summary` a sentence; `events` what happened, with Unix seconds; `unknown` what the
    sources do not tell, and why. `role` sends the entry; `claims` and `run` are what the leader topic and the history
    have of the slot.
    """

    entry: str
    slot: float | None
    verdict: str
    ran: bool | None
    summary: str
    events: list[tuple[float, str]] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    role: str = ""
    claims: tuple[Claim, ...] = ()
    run: Run | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        found = {name: getattr(self, name) for name in self.__slots__}
        return {
            **found,
            "events": [{"at": at, "what": what} for at, what in self.events],
            "claims": [each.as_dict() for each in self.claims],
            "run": None if self.run is None else self.run.as_dict(),
        }


def lines_of(story: Story, zone: tzinfo | None = None) -> list[str]:
    """Return the story as lines for a terminal, with times in this zone."""
    words = Words(zone)
    slot = "no slot" if story.slot is None else f"slot {words.time(story.slot)}"
    lines = [f"{named(story.entry)}, {slot}: {story.verdict}", story.summary]
    lines += [f"  {words.clock(at)}  {what}" for at, what in story.events]
    lines += [f"not known: {each}" for each in story.unknown]
    return lines
