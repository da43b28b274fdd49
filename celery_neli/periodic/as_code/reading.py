"""Read a file of YAML or JSON as plain values, and note the lines where they stand.

Nothing in a file is run or made: of YAML it takes mappings, lists, text, numbers, true, false and null. Tags, anchors
and aliases, with which a small file could become a large one, are mistakes, as is a key that is there twice. Pure;
loads PyYAML for files that are not JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from celery_neli.printable import printable, shown
from celery_neli.schedule_topic.values import MAX_DEPTH

MOST_BYTES: Final = 32 << 20
LINED: Final = 4  # levels of keys whose lines are noted: entries, an entry, its options, one of them
DEEPEST: Final = MAX_DEPTH + LINED
MERGE: Final = "<< merges nothing here: write the fields themselves; text must be in quotes"
NEEDS_YAML: Final = 'a file that is not JSON needs PyYAML: pip install "celery-neli[yaml]"'
_JSON_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]]|[^\s{}\[\]",:]+|(\n)')

Path: TypeAlias = "tuple[str, ...]"


class Mistake(NamedTuple):
    """What is wrong in a line of a file."""

    line: int
    text: str


class _Token(NamedTuple):
    """A part of a file. `text`: what stands there, if it may be text; `doubt`: why its value cannot be known."""

    kind: Literal["mapping", "list", "end", "scalar"]
    line: int
    value: Any = None
    text: str | None = None
    doubt: str | None = None


@dataclass(frozen=True, slots=True)
class Parsed:
    """The plain value of a file, and the `lines` of keys down to the fourth level, by their paths.

    The value may lack what the `mistakes` are about: `doubtful` has the first two keys on the way to each.
    """

    value: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)
    doubtful: set[Path] = field(default_factory=set)


class _Broken(Exception):
    """The rest of the file cannot be read."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.mistake = Mistake(line, text)


def parse(data: bytes, *, is_text: Callable[[Path], bool], as_json: bool = False) -> Parsed:
    """Return what a file holds. It never raises: what is wrong are `mistakes`.

    Args:
        data: The bytes of the file, at most `MOST_BYTES`.
        is_text: Returns True for the path of a field that holds text: `12:30` and `on` need no quotes there.
        as_json: The file is JSON. Otherwise it is JSON if it begins with a brace and can be read so, else YAML.
    """
    found = Parsed()
    try:
        tokens = _tokens(_text_of(data), as_json=as_json)
        value = _Builder(tokens, found, is_text).build()
    except _Broken as exc:
        found.mistakes.append(exc.mistake)
        return found
    return replace(found, value=value)


def _text_of(data: bytes) -> str:
    if len(data) > MOST_BYTES:
        raise _Broken(
            1, f"the file has more than {MOST_BYTES >> 20} MiB: make several of it, each with an owner of its own"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise _Broken(line, f"is not UTF-8: byte 0x{data[exc.start]:02x}: save the file as UTF-8") from None
    if not text.strip():
        raise _Broken(1, "the file is empty: begin with 'version: 1'")
    return text


def _tokens(text: str, *, as_json: bool) -> Iterator[_Token]:
    if as_json or text.lstrip().startswith("{"):
        try:
            json.loads(text, parse_constant=_no_constant)
        except _Constant as exc:
            raise _Broken(_line_of(str(exc), text), f"{exc} is not JSON: give a finite number, or null") from None
        except RecursionError:
            raise _Broken(1, _too_deep()) from None
        except ValueError as exc:
            if as_json:
                line = getattr(exc, "lineno", 1)
                raise _Broken(line, f"is not JSON: {printable(getattr(exc, 'msg', str(exc)))}") from None
        else:
            return _json_tokens(text)
    return _yaml_tokens(text)


class _Constant(Exception):
    pass


def _no_constant(name: str) -> Any:
    raise _Constant(name)


def _line_of(part: str, text: str) -> int:
    """Return the line of the first part of JSON that reads so."""
    place = next((each.start() for each in _JSON_TOKEN.finditer(text) if each.group() == part), 0)
    return text.count("\n", 0, place) + 1


def _json_tokens(text: str) -> Iterator[_Token]:
    """Yield the parts of valid JSON."""
    line = 1
    for found in _JSON_TOKEN.finditer(text):
        part = found.group()
        if part == "\n":
            line += 1
        elif part in "{[":
            yield _Token("mapping" if part == "{" else "list", line)
        elif part in "}]":
            yield _Token("end", line)
        else:
            value = json.loads(part)
            yield _Token("scalar", line, value, value if isinstance(value, str) else None)


def _yaml_tokens(text: str) -> Iterator[_Token]:
    """Yield the parts of YAML. Raises `_Broken`."""
    try:
        import yaml
    except ImportError:
        raise _Broken(1, NEEDS_YAML) from None
    from celery_neli.periodic.as_code.scalars import Doubt, meaning_of

    documents = 0
    try:
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            line = event.start_mark.line + 1
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise _Broken(line, "a second document begins here: a file holds one, so take out '---'")
            elif isinstance(event, yaml.AliasEvent):
                raise _Broken(
                    line,
                    f"*{printable(event.anchor)} is an alias: write the value itself; text that begins "
                    "with * must be in quotes, such as '*/5 * * * *'",
                )
            elif isinstance(event, yaml.CollectionEndEvent):
                yield _Token("end", line)
            elif isinstance(event, yaml.NodeEvent):
                _check_node(event, line)
                if isinstance(event, yaml.ScalarEvent):
                    plain = event.implicit[0] and not event.style
                    value = meaning_of(event.value) if plain else event.value
                    merge = plain and event.value == "<<"
                    doubt = MERGE if merge else value.why if isinstance(value, Doubt) else None
                    yield _Token("scalar", line, value, event.value, doubt)
                else:
                    yield _Token("mapping" if isinstance(event, yaml.MappingStartEvent) else "list", line)
    except yaml.reader.ReaderError as exc:
        character = chr(exc.character) if isinstance(exc.character, int) else ""
        line = text.count("\n", 0, max(text.find(character), 0)) + 1
        raise _Broken(
            line, f"the character {shown(character)} cannot stand in YAML: write it as an escape, in double quotes"
        ) from None
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        raise _Broken(mark.line + 1 if mark else 1, f"is not YAML: {_reason(exc, text)}") from None


def _check_node(event: Any, line: int) -> None:
    if event.anchor is not None:
        raise _Broken(
            line, f"&{printable(event.anchor)} is an anchor: leave it out; text that begins with & must be in quotes"
        )
    if event.tag is not None:
        raise _Broken(line, f"{printable(event.tag)} is a tag: leave it out; text that begins with ! must be in quotes")


def _reason(exc: Any, text: str) -> str:
    """Return what is wrong, and what to write if text lacks its quotes."""
    mark = exc.problem_mark or exc.context_mark
    why = ", ".join(filter(None, (exc.context, exc.problem)))
    if mark is None:
        return str(why)
    row = text.splitlines()[mark.line] if mark.line < len(text.splitlines()) else ""
    value = re.search(r"(?:^|[:\-\[,]\s+)([*&!@`%|>][^\s].*|\*\s.*)$", row)
    if "\t" in row[: len(row) - len(row.lstrip())]:
        return f"{why}: indent with spaces, not with tabs"
    if value is not None:
        return f"text that begins with {value[1][0]} must be in quotes: write '{printable(value[1].strip(), 60)}'"
    if "mapping values are not allowed" in why:
        return f"{why}: text that holds ': ' must be in quotes; keys of one mapping are indented alike"
    return str(why)


def _too_deep() -> str:
    return f"lists and mappings are nested more than {DEEPEST} deep: keep the data elsewhere, and pass where it is"


class _Builder:
    """Makes the value of a file from its parts."""

    def __init__(self, tokens: Iterator[_Token], found: Parsed, is_text: Callable[[Path], bool]) -> None:
        self._tokens, self._found, self._is_text = tokens, found, is_text

    def build(self) -> Any:
        """Return the value of the whole file. Raises `_Broken`."""
        first = next(self._tokens, None)
        value = None if first is None else self._value(first, (), 0)
        for _ in self._tokens:  # what follows the only document may be broken
            pass
        return value

    def _value(self, token: _Token, path: Path, depth: int) -> Any:
        """Return the value that begins with this token; ``path`` has the first keys on the way to it."""
        if depth > DEEPEST:
            raise _Broken(token.line, _too_deep())
        if token.kind == "mapping":
            return self._mapping(path, depth)
        if token.kind == "list":
            items = []
            while (each := next(self._tokens)).kind != "end":
                items.append(self._value(each, path, depth + 1))
            return items
        if token.value is not None and token.text is not None and self._is_text(path):
            return token.text
        if token.doubt is not None:
            self._mistake(token.line, path, token.doubt)
            return None
        return token.value

    def _mapping(self, path: Path, depth: int) -> dict[str, Any]:
        made: dict[str, Any] = {}
        lines: dict[str, int] = {}
        while (key := next(self._tokens)).kind != "end":
            if key.text is None:
                raise _Broken(key.line, "a key is not text: write a name, in quotes if need be")
            below = (*path, key.text)[:LINED]
            value = self._value(next(self._tokens), below, depth + 1)
            if key.doubt == MERGE:
                self._mistake(key.line, path, MERGE)
            elif key.text in made:
                first = lines[key.text]
                self._mistake(key.line, path, f"{shown(key.text)} is there twice, first in line {first}: leave one out")
            else:
                made[key.text], lines[key.text] = value, key.line
                if depth < LINED:
                    self._found.lines.setdefault(below, key.line)
        return made

    def _mistake(self, line: int, path: Path, text: str) -> None:
        self._found.doubtful.add(path[:2])
        self._found.mistakes.append(Mistake(line, ": ".join((*place_of(path), text))))


def place_of(path: Path) -> Iterator[str]:
    """Yield the names of a path as errors show them; that of an entry stands for itself."""
    names = path[1:] if len(path) > 1 and path[0] == "entries" else path
    return (printable(each, 80) for each in names)
