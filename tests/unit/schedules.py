"""A runtime schedule without Kafka."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery_neli.periodic.api import Periodic, view_of
from celery_neli.periodic.editor import ScheduleEditor
from celery_neli.schedule_topic.codec import (
    ENTRY,
    STATE,
    Definition,
    State,
    decode_definition,
    decode_state,
    encode_definition,
    encode_state,
)
from tests.unit.schedulers import make_app

if TYPE_CHECKING:
    from collections.abc import Mapping

    from celery import Celery

    from celery_neli.periodic.editor import Record
    from celery_neli.schedule_topic.codec import Kind

#: 2026-06-01 12:00:00 UTC
NOON = 1_780_315_200.0


class FakeStore:
    """The schedule topic: a dict. `writes` counts what was written."""

    def __init__(self) -> None:
        self.values: dict[tuple[Kind, str], bytes] = {}
        self.writes: list[list[Record]] = []

    def read(self) -> Mapping[tuple[Kind, str], bytes]:
        return dict(self.values)

    def write(self, records: list[Record]) -> None:
        self.writes.append(records)
        for kind, name, value in records:
            if value is None:
                self.values.pop((kind, name), None)
            else:
                self.values[kind, name] = value

    def definition(self, name: str) -> Any:
        value = self.values.get((ENTRY, name))
        return None if value is None else decode_definition(value)

    def state(self, name: str) -> Any:
        value = self.values.get((STATE, name))
        return None if value is None else decode_state(value)

    def set(self, name: str, value: State | Definition) -> None:
        """As if somebody else had written it."""
        if isinstance(value, State):
            self.values[STATE, name] = encode_state(value)
        else:
            self.values[ENTRY, name] = encode_definition(value)


class Desk:
    """Edits the schedule of an app at times of the test's own."""

    def __init__(self, app: Celery | None = None) -> None:
        self.app = app or make_app(beat_schedule={"static": {"task": "t", "schedule": 60.0}})
        self.app.conf.neli_scheduler = None  # the one that runs runtime entries
        self.store = FakeStore()
        self.now = NOON

    def editor(self, by: str | None = "alice") -> ScheduleEditor:
        return ScheduleEditor(self.app, self.store, by=by, clock=lambda: self.now)

    def put(self, name: str, schedule: Any = "PT1M", task: Any = "t", **given: Any) -> None:
        fields = {"args": (), "kwargs": None, "options": None, **given}
        self.editor().put(name, task, schedule, fields["args"], fields["kwargs"], fields["options"])

    def look(self, name: str) -> Periodic:
        return view_of(self.editor(), name)
