"""The terms of each role, from the leader topic alone: who led, from when to when, how it ended, and the gaps between.

An observer folds the log as a member does (election/lease.py), but writes nothing and joins nothing. All times are the
timestamps of records, which brokers set where the topic has `message.timestamp.type=LogAppendTime`; where the log no
longer holds the begin of a term, that begin is unknown. Members never trust these times: they are for people.
"""

from celery_neli.timeline.claims import Claim, SlotWatch
from celery_neli.timeline.follower import TimelineFollower, read_terms, read_timelines
from celery_neli.timeline.terms import (
    DEPOSED,
    EXPIRED,
    HANDED_OVER,
    LIVES,
    RELEASED,
    UNKNOWN,
    Observe,
    RoleTimeline,
    Term,
)

__all__ = [
    "DEPOSED",
    "EXPIRED",
    "HANDED_OVER",
    "LIVES",
    "RELEASED",
    "UNKNOWN",
    "Claim",
    "Observe",
    "RoleTimeline",
    "SlotWatch",
    "Term",
    "TimelineFollower",
    "read_terms",
    "read_timelines",
]
