"""All errors of celery-neli, under one base."""

from __future__ import annotations


class NeliError(Exception):
    """Base of every error that celery-neli raises."""


class ConfigurationError(NeliError, ValueError):
    """A setting is missing, misspelt or unfit; the message names it, its value and what to do."""


class RecordError(NeliError, ValueError):
    """A record of the leader topic cannot be read; all members skip it alike (R9)."""


class UnknownVersion(RecordError):
    """Another version of the protocol wrote a record: this member must stand aside (R9)."""


class TopicError(NeliError):
    """The leader topic is missing or unfit, or rights to it are missing; the message says what to do."""


class NotAllowed(NeliError):
    """Kafka refused a request because rights are missing; the message has the command that grants them."""


class Conflict(NeliError):
    """Entries were changed by somebody else since they were read; none of the changes that it names was made.

    `names`: the entries.
    """

    def __init__(self, message: str, names: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.names = names


class ClosedError(NeliError):
    """The `Neli` was closed and cannot be pulsed any more."""


class EmbeddedKafkaUnavailable(NeliError):
    """The embedded Kafka needs functions that this librdkafka does not offer."""


class NotLeader(NeliError):
    """A process that does not lead was asked to do what only the leader does; it did not do it."""


class LeadershipLost(NeliError):
    """The lease ended while the leader's work was running: another process may have begun the same work already."""
