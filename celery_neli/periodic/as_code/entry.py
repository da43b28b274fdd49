"""One entry of a file, checked as `periodic.put` checks it.

First each field is checked by itself, so that all mistakes are found; then what they say together.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kombu.utils.json import loads

from celery_neli.exceptions import ConfigurationError
from celery_neli.periodic.as_code.reading import Mistake, Path, place_of
from celery_neli.periodic.call import call_of, is_mapping, option_mistakes
from celery_neli.periodic.definition import define
from celery_neli.printable import did_you_mean, printable, printable_error
from celery_neli.schedule_topic.codec import Definition, check_name, encode_definition
from celery_neli.schedule_topic.values import MAX_NOTE, shown

FIELDS: Final = ("task", "schedule", "args", "kwargs", "options", "paused", "note")
_VALUES: Final = ("args", "kwargs", "options")
_MISSING: Final = {
    "task": "write the name of a task, such as shop.tasks.tidy_up",
    "schedule": "write a schedule, such as 5m or '*/5 * * * *'",
}
#: What is right beside a field that is checked by itself; no app knows this task, and so no arguments of it.
_SOUND: Final = {"task": "?", "schedule": "@yearly"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """An entry as a file wants it. `paused`: None if the file does not say. `line`: where it begins."""

    definition: Definition
    line: int
    paused: bool | None = None
    note: str = ""


class Draft:
    """An entry of a file. It is `wanted` once its `mistakes` were asked for, and there were none."""

    def __init__(self, app: Any, name: str, given: Any, lines: Mapping[Path, int], *, doubtful: bool) -> None:
        self.wanted: Wanted | None = None
        self._app, self._name, self._given, self._lines, self._doubtful = app, name, given, lines, doubtful
        self._path = ("entries", name)

    def mistakes(self) -> list[Mistake]:
        """Return all that is wrong with the entry; what its fields say together, only if each is right by itself."""
        given = self._given
        if not isinstance(given, dict):
            text = f"{shown(given)}: write fields by name: {', '.join(FIELDS)}"
            return [] if self._doubtful else [self._mistake(text)]  # of a doubt, `reading` has said so
        found = list(self._beside())
        try:
            definition = self._defined()
        except Exception as exc:  # noqa: BLE001 - kombu's decoders may raise anything
            found += list(self._alone())
            if not found and not self._doubtful:
                field = next((each for each in FIELDS if str(exc).startswith((f"{each} ", f"{each}:"))), None)
                found.append(self._mistake(str(exc), *filter(None, [field])))
        else:
            if not found and not self._doubtful:
                line = self._lines[self._path]
                note = given.get("note") or ""
                self.wanted = Wanted(definition=definition, line=line, paused=given.get("paused"), note=note)
        return found

    def _beside(self) -> Iterator[Mistake]:
        """Yield what is wrong with the fields of which `define` knows nothing."""
        given = self._given
        yield from (self._mistake(text, name) for name, text in unknown_fields(given, FIELDS))
        if (paused := given.get("paused")) is not None and not isinstance(paused, bool):
            yield self._mistake(f"paused = {shown(paused)}: write true or false", "paused")
        if (note := given.get("note")) is not None and (text := text_mistake("note", note, MAX_NOTE)):
            yield self._mistake(text, "note")

    def _defined(self) -> Definition:
        given = self._given
        fields = {name: _revived(given[name]) for name in _VALUES if given.get(name) is not None}
        definition = define(self._app, self._name, given.get("task"), given.get("schedule"), **fields)
        encode_definition(definition)  # which looks at its size
        return definition

    def _alone(self) -> Iterator[Mistake]:
        """Yield what is wrong with the other fields, each by itself."""
        given = self._given
        try:
            check_name(self._name)
        except ConfigurationError as exc:
            yield self._mistake(str(exc))
        for name, remedy in _MISSING.items():
            if given.get(name) is None:
                yield self._mistake(f"{name} is missing: {remedy}")
            elif (text := self._refusal(**{name: given[name]})) is not None:
                yield self._mistake(text, name)
        for name in _VALUES:
            if given.get(name) is not None:
                yield from self._value_mistakes(name, given[name])

    def _value_mistakes(self, name: str, value: Any) -> Iterator[Mistake]:
        try:
            revived = _revived(value)
        except Exception as exc:  # noqa: BLE001 - kombu's decoders may raise anything
            unknown = exc.args[:1] == ("Unsupported type",) and shown(exc.args[-1])
            why = (
                f"{unknown} has a __type__ that does not exist"
                if unknown
                else f"cannot be read: {printable_error(exc)}"
            )
            yield self._mistake(f"{name}: {why}", name)
            return
        if name == "options" and is_mapping(revived):
            texts = list(option_mistakes(revived, runtime=True))
            for text in texts:
                starts = text.removeprefix("options: ").removeprefix("there is no option ")
                option = next(
                    (each for each in revived if starts.startswith((f"{each} ", f"{each}:", f"{each};"))), None
                )
                yield self._mistake(text, name, *filter(None, [option]))
            if texts:
                return
        if (refusal := self._refusal(**{name: revived})) is not None:
            yield self._mistake(refusal, name)

    def _refusal(self, **fields: Any) -> str | None:
        """Return what is wrong with one field of an entry that is sound otherwise."""
        try:
            if "task" in fields:
                call_of(self._app, fields["task"], (), None, None)
            else:
                define(self._app, "entry", **{**_SOUND, **fields})
        except ConfigurationError as exc:
            return str(exc)
        return None

    def _mistake(self, text: str, *names: str) -> Mistake:
        path: Path = (*self._path, *names)
        while path not in self._lines:
            path = path[:-1]
        return Mistake(self._lines[path], f"{next(place_of(self._path))}: {text}")


def unknown_fields(given: Mapping[str, Any], known: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the names of fields that do not exist, and what to write."""
    for name in given:
        if name not in known:
            yield name, f"there is no field {printable(name)}; {did_you_mean(name, known)}"


def text_mistake(field: str, value: Any, most: int) -> str | None:
    """Return what is wrong with the text of a field, None if nothing is."""
    if isinstance(value, str) and value.strip() and value.isprintable() and len(value) <= most:
        return None
    return f"{field} = {shown(value)}: give 1 to {most} printable characters"


def _revived(value: Any) -> Any:
    """Return what kombu's JSON makes of a value: datetimes and the like are marked mappings in a file, too."""
    decode: Any = loads  # it comes without types
    return decode(json.dumps(value))
