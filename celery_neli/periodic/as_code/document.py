"""What a file of the schedule may say, checked as the API checks it: all mistakes of all entries, with their lines.

    version: 1
    owner: team-billing
    entries:
      report-42:
        task: shop.report
        schedule: 0 7 * * mon-fri
        args: [42]
        options:
          neli_misfire: skip

Pure; imports no Kafka client.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from celery_neli.periodic.as_code.entry import Draft, Wanted, text_mistake, unknown_fields
from celery_neli.periodic.as_code.reading import Mistake, Parsed, Path, parse
from celery_neli.printable import printable
from celery_neli.schedule_topic.values import shown

VERSION: Final = 1
MOST_OWNER: Final = 200  # characters
FIELDS: Final = ("version", "owner", "entries")
#: What stands there is text: no quotes are needed to say so.
_TEXTS: Final = frozenset(("task", "schedule", "note"))


@dataclass(frozen=True, slots=True)
class Document:
    """A file that was read. If it has `mistakes`, nothing of it may be applied."""

    file: str
    owner: str = ""
    entries: dict[str, Wanted] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)
    lines: Mapping[Path, int] = field(default_factory=dict)

    def at(self, mistake: Mistake) -> str:
        """Return a mistake as it is shown: file, line, what is wrong."""
        return f"{printable(self.file)}:{mistake.line}: {mistake.text}"


def read(app: Any, data: bytes, *, file: str) -> Document:
    """Return what a file wants, with all mistakes in it. Never raises.

    Args:
        app: The Celery app. It is asked about tasks that it knows, and gives the time zone.
        data: The bytes of the file: YAML, or JSON.
        file: Its name, for errors. If it ends in ``.json``, it is JSON.
    """
    parsed = parse(data, is_text=_is_text, as_json=file.lower().endswith(".json"))
    if parsed.value is None and parsed.mistakes:
        return Document(file, mistakes=parsed.mistakes)
    found = Document(file, owner=_owner_of(parsed), mistakes=parsed.mistakes, lines=parsed.lines)
    found.mistakes.extend(_head_mistakes(parsed))
    entries = parsed.value.get("entries") if isinstance(parsed.value, dict) else None
    for name, given in entries.items() if isinstance(entries, dict) else ():
        draft = Draft(app, name, given, parsed.lines, doubtful=("entries", name) in parsed.doubtful)
        found.mistakes.extend(draft.mistakes())
        if draft.wanted is not None:
            found.entries[name] = draft.wanted
    found.mistakes.sort()
    return found


def _is_text(path: Path) -> bool:
    if len(path) == 1:
        return path[0] == "owner"
    return len(path) == 3 and path[0] == "entries" and path[2] in _TEXTS


def _owner_of(parsed: Parsed) -> str:
    owner = parsed.value.get("owner") if isinstance(parsed.value, dict) else None
    return owner if isinstance(owner, str) else ""


def _head_mistakes(parsed: Parsed) -> Iterator[Mistake]:
    """Yield what is wrong outside of the entries."""
    value, lines = parsed.value, parsed.lines
    if not isinstance(value, dict):
        kind = "a list" if isinstance(value, list) else shown(value)
        yield Mistake(1, f"the file is {kind}: write fields by name: {', '.join(FIELDS)}")
        return
    yield from (Mistake(lines[name,], text) for name, text in unknown_fields(value, FIELDS))
    version, entries = value.get("version"), value.get("entries")
    if ("version",) in parsed.doubtful:
        pass  # `reading` has said so
    elif version is None:
        yield Mistake(lines.get(("version",), 1), f"version is missing: write 'version: {VERSION}'")
    elif type(version) is not int or version != VERSION:
        yield Mistake(lines["version",], f"version = {shown(version)}: this release reads version {VERSION}")
    if (owner := value.get("owner")) is not None and (text := text_mistake("owner", owner, MOST_OWNER)):
        yield Mistake(lines["owner",], text)
    if ("entries",) in parsed.doubtful and not isinstance(entries, dict):
        pass
    elif entries is None:
        yield Mistake(lines.get(("entries",), 1), "entries is missing: write entries by name, or {} for none")
    elif not isinstance(entries, dict):
        yield Mistake(lines["entries",], f"entries = {shown(entries)}: write entries by name, not a list or a text")
