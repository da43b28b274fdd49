"""Many changes of the runtime schedule at once."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from types import TracebackType
from typing import Any

from celery_neli.exceptions import NeliError
from celery_neli.periodic.editor import Edit, ScheduleEditor
from celery_neli.periodic.edits import pausing, removing, resuming


class Batch:
    """Changes that are collected, and written together at the end of a `with` block: see `periodic.batch`.

    Each call raises at once what is wrong with it. `len`: how many changes were collected. Not thread-safe.
    """

    def __init__(self, app: Any, *, by: str | None = None, note: str | None = None, owner: str | None = None) -> None:
        self._editor = ScheduleEditor(app, by=by, note=note, owner=owner)
        self._edits: dict[str, list[Edit]] = {}
        self._ended = False

    def put(
        self,
        name: str,
        task: Any,
        schedule: Any,
        *,
        args: Any = (),
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        expected: str | None = None,
    ) -> None:
        """Add an entry, or replace the one of this name: as `periodic.put`. Does not block."""
        self._add(self._editor.to_put(name, task, schedule, args, kwargs, options, expected=expected))

    def pause(self, name: str, *, until: Any = None, expected: str | None = None) -> None:
        """Let the slots of an entry pass: as `periodic.pause`. Blocks while it looks if there is such an entry."""
        self._add(pausing(self._editor, name, until=until, expected=expected), check=True)

    def resume(self, name: str, *, expected: str | None = None) -> None:
        """End the pause of an entry: as `periodic.resume`. Blocks as `pause`."""
        self._add(resuming(self._editor, name, expected=expected), check=True)

    def remove(self, name: str, *, expected: str | None = None) -> None:
        """Delete a runtime entry and its state: as `periodic.remove`. Blocks as `pause`."""
        self._add(removing(self._editor, name, expected=expected), check=True)

    def __len__(self) -> int:
        return sum(map(len, self._edits.values()))

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended = True
        if kind is None:
            self._editor.change(*chain.from_iterable(self._edits.values()))

    def _add(self, edit: Edit, *, check: bool = False) -> None:
        if self._ended:
            raise NeliError("the block of this batch has ended: begin another one")
        if check:
            self._editor.check(edit, self._edits.get(edit.name, ()))
        self._edits.setdefault(edit.name, []).append(edit)
