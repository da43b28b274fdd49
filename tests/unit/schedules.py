"""A runtime schedule without Kafka."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery_neli.periodic.editor import ScheduleEditor
from celery_neli.periodic.edits import pausing, removing, resuming, run_now
from celery_neli.periodic.view import Periodic, view_of
from celery_neli.schedule_topic.codec import (
    ENTRY,
    PAUSE,
    STATE,
    Definition,
    State,
    decode_definition,
    decode_state,
    encode_definition,
    encode_state,
)
from celery_neli.schedule_topic.versions import head_of, is_void
from tests.unit.schedulers import make_app

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from celery import Celery

    from celery_neli.schedule_topic.codec import Kind
    from celery_neli.schedule_topic.write import Write

#: 2026-06-01 12:00:00 UTC
NOON = 1_780_315_200.0


class FakeStore:
    """The schedule topic: a dict. `writes` counts what was written, `meddle` is called before a definition is."""

    def __init__(self) -> None:
        self.values: dict[tuple[Kind, str], bytes] = {}
        self.writes: list[list[Write]] = []
        self.meddle: Callable[[], object] = lambda: None

    def read(self, *, keep: Callable[[str], bool] | None = None) -> Mapping[tuple[Kind, str], bytes]:
        return {entry: value for entry, value in self.values.items() if keep is None or keep(entry[1])}

    def look(
        self, names: Collection[str], *, kinds: Sequence[Kind] = (ENTRY, STATE), fresh: bool = True
    ) -> Mapping[tuple[Kind, str], bytes]:
        return {entry: value for entry, value in self.read(keep=names.__contains__).items() if entry[0] in kinds}

    def write(self, writes: list[Write]) -> set[str]:
        """As readers of the log judge."""
        if writes:
            self.meddle()
            self.writes.append(writes)
        return {each.version for each in writes if not put(self.values, each)}

    def pauses(self) -> Mapping[str, bytes]:
        return {name: value for (kind, name), value in self.values.items() if kind == PAUSE}

    def size(self, name: str) -> int:
        return len(self.values)

    def definition(self, name: str) -> Any:
        value = self.values.get((ENTRY, name))
        found = None if value is None else decode_definition(value)
        return None if found is None or found.removed else found

    def state(self, name: str) -> Any:
        value = self.values.get((STATE, name))
        return None if value is None else decode_state(value)

    def set(self, name: str, value: State | Definition) -> None:
        """As if somebody else had written it."""
        if isinstance(value, State):
            self.values[STATE, name] = encode_state(value)
        else:
            self.values[ENTRY, name] = encode_definition(value)


def put(values: dict[tuple[Kind, str], bytes], write: Write) -> bool:
    """Put a record into what a topic holds; return False if it is void."""
    entry = write.kind, write.name
    before = values.get(entry)
    if write.kind == ENTRY and before is not None:
        head = None if write.value is None else head_of(write.value)
        if is_void(head, head_of(before).mark):
            return False
    if write.value is None:
        values.pop(entry, None)
    else:
        values[entry] = write.value
    return True


class Editor(ScheduleEditor):
    """Makes one change at a time, as the API does."""

    def put(self, *call: Any) -> None:
        self.change(self.to_put(*call))

    def pause(self, name: Any, **given: Any) -> None:
        self.change(pausing(self, name, **given))

    def resume(self, name: Any, **given: Any) -> None:
        self.change(resuming(self, name, **given))

    def remove(self, name: Any, **given: Any) -> None:
        self.change(removing(self, name, **given))

    def run_now(self, name: Any) -> Any:
        return run_now(self, name)


class Desk:
    """Edits the schedule of an app at times of the test's own."""

    def __init__(self, app: Celery | None = None) -> None:
        self.app = app or make_app(beat_schedule={"static": {"task": "t", "schedule": 60.0}})
        self.app.conf.neli_scheduler = None  # the one that runs runtime entries
        self.store = FakeStore()
        self.now = NOON

    def editor(self, by: str | None = "alice", **given: Any) -> Editor:
        return Editor(self.app, self.store, by=by, clock=lambda: self.now, **given)

    def put(self, name: str, schedule: Any = "PT1M", task: Any = "t", **given: Any) -> None:
        fields = {"args": (), "kwargs": None, "options": None, **given}
        self.editor().put(name, task, schedule, fields["args"], fields["kwargs"], fields["options"])

    def look(self, name: str) -> Periodic:
        return view_of(self.editor(), name)
