"""What the schedule topic holds of the runtime schedule, as far as it was read; and the topic of an app.

Importing this loads no Kafka client; to make a `Topic` does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from celery_neli.config import enabled, from_app
from celery_neli.exceptions import ConfigurationError
from celery_neli.logs import escaping
from celery_neli.schedule_topic.codec import Definition, Kind, State
from celery_neli.schedule_topic.write import Write

Records: TypeAlias = "Mapping[tuple[Kind, str], bytes]"


class Topic:
    """The schedule topic of an app. Everything blocks, and raises `NeliError`.

    `read` returns all states and definitions that count, those of some names if it is told which ones to `keep`;
    `look` those of a few names, of some `kinds` if it is told so, and if they need not be `fresh`, as they were when it
    was last asked. `write` takes records and returns the versions that are void, because another
    definition than their base is there. `pauses` returns the pauses of many entries, by name. `size` returns about how
    many records lie beside those of a name.
    """

    def __init__(self, app: Any) -> None:
        if not enabled(app):
            raise ConfigurationError("neli_enabled = False: there is no runtime schedule without Kafka; switch it on")
        from celery_neli.schedule_topic.held import held_topic

        held = held_topic(from_app(app, "beat"), log=escaping(logging.getLogger("celery_neli.periodic.api")))
        self.read: Callable[..., Records] = held.read_all
        self.look: Callable[..., Records] = held.look
        self.write: Callable[[Sequence[Write]], set[str]] = held.write
        self.pauses: Callable[[], Mapping[str, bytes]] = held.pauses
        self.size: Callable[[str], int] = held.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the topic holds. `removed`: definitions that stand for an entry that is gone. `unreadable`: why a definition
    could not be read (a newer release wrote it).
    """

    states: dict[str, State] = field(default_factory=dict)
    definitions: dict[str, Definition] = field(default_factory=dict)
    removed: dict[str, Definition] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
