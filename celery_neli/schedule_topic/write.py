"""A record for the schedule topic."""

from __future__ import annotations

from typing import NamedTuple

from celery_neli.schedule_topic.codec import Kind


class Write(NamedTuple):
    """A record to be written; None deletes. `version` is that of a definition: it tells whether the record counts."""

    kind: Kind
    name: str
    value: bytes | None
    version: str = ""
