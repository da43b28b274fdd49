"""Every error of celery-neli, under one base."""

from __future__ import annotations


class NeliError(Exception):
    """Base of every error that celery-neli raises."""


class ConfigurationError(NeliError, ValueError):
    """A setting is missing, misspelt or contradicts another; the message names it, its value and what to do."""


class RecordError(NeliError, ValueError):
    """A record of the leader topic cannot be read; everybody skips it alike (R9)."""


class UnknownVersion(RecordError):
    """A record was written by another version of the protocol: this member must stand aside (R9)."""


class TopicError(NeliError):
    """The leader topic is missing, unfit or out of reach for want of rights; the message says what to do."""


class NotAllowed(NeliError):
    """Kafka refused a question because rights are missing; the message has the command that gives them."""


class ClosedError(NeliError):
    """The curator was closed: it can be pulsed no more."""


class EmbeddedKafkaUnavailable(NeliError):
    """The embedded Kafka needs functions that this librdkafka does not offer."""


class NotLeader(NeliError):
    """Something that only the leader does was asked of a process that does not lead; it was not done."""


class LeadershipLost(NeliError):
    """The lease ended while a leader's work was running: another may have begun already."""
