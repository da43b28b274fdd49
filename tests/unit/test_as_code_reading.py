"""A file of the schedule is read: YAML or JSON, with the line of each mistake, and nothing in it is run."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from celery_neli.periodic.as_code.document import Document, read
from celery_neli.periodic.as_code.entry import FIELDS
from celery_neli.periodic.as_code.reading import MOST_BYTES, parse
from tests.unit.schedulers import make_app

HEAD = "version: 1\nowner: team\nentries:\n"


@pytest.fixture(scope="module")
def app() -> Any:
    app = make_app()

    @app.task(name="shop.tidy", shared=False)  # not of the apps of other tests
    def tidy(a: int, b: int = 1) -> None: ...

    return app


def said(app: Any, data: bytes | str, file: str = "s.yaml") -> list[str]:
    """Return the mistakes of a file, as they are shown; there must be no line break in any."""
    found = document(app, data, file)
    lines = [found.at(each) for each in found.mistakes]
    assert all(each.isprintable() for each in lines)
    return lines


def document(app: Any, data: bytes | str, file: str = "s.yaml") -> Document:
    return read(app, data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data, file=file)


BROKEN: dict[str, tuple[bytes | str, str]] = {
    "nothing": (b"", "s.yaml:1: the file is empty: begin with 'version: 1'"),
    "blanks": (b" \n\n", "s.yaml:1: the file is empty: begin with 'version: 1'"),
    "a list": ("- a\n", "s.yaml:1: the file is a list: write fields by name: version, owner, entries"),
    "a word": ("a", "s.yaml:1: the file is 'a': write fields by name: version, owner, entries"),
    "no UTF-8": (b"version: 1\n\nentries: \xff", "s.yaml:3: is not UTF-8: byte 0xff: save the file as UTF-8"),
    "UTF-16": ("version: 1".encode("utf-16"), "s.yaml:1: is not UTF-8: byte 0xff: save the file as UTF-8"),
    "a control character": (
        "version: 1\nentries:\n  a\x01: {}\n",
        "s.yaml:3: the character '\\x01' cannot stand in YAML: write it as an escape, in double quotes",
    ),
    "a star without quotes": (
        f"{HEAD}  a:\n    schedule: */5 * * * *\n",
        "s.yaml:5: is not YAML: text that begins with * must be in quotes: write '*/5 * * * *'",
    ),
    "stars alone": (
        f"{HEAD}  a:\n    schedule: * * * * *\n",
        "s.yaml:5: is not YAML: text that begins with * must be in quotes: write '* * * * *'",
    ),
    "a nickname without quotes": (
        f"{HEAD}  a: {{}}\n  b:\n    schedule: @daily\n",
        "s.yaml:6: is not YAML: text that begins with @ must be in quotes: write '@daily'",
    ),
    "a tab": (
        "version: 1\nentries:\n\ta: 1\n",
        (
            "s.yaml:3: is not YAML: while scanning for the next token, found character that cannot start any token: "
            "indent with spaces, not with tabs"
        ),
    ),
    "two documents": (
        "version: 1\n---\nentries: {}\n",
        "s.yaml:2: a second document begins here: a file holds one, so take out '---'",
    ),
    "a tag": (
        f"{HEAD}  a: !!python/object/apply:os.system ['true']\n",
        (
            "s.yaml:4: tag:yaml.org,2002:python/object/apply:os.system is a tag: leave it out; text that begins with ! "
            "must be in quotes"
        ),
    ),
    "an anchor": (
        f"{HEAD}  a: &x {{}}\n",
        "s.yaml:4: &x is an anchor: leave it out; text that begins with & must be in quotes",
    ),
    "an alias": (
        f"{HEAD}  a: *x\n",
        (
            "s.yaml:4: *x is an alias: write the value itself; text that begins with * must be in quotes, such as "
            "'*/5 * * * *'"
        ),
    ),
    "a list for a key": ("? [a]\n: b\n", "s.yaml:1: a key is not text: write a name, in quotes if need be"),
    "too deep": (
        f"{HEAD}  a: {'[' * 100}{']' * 100}\n",
        "s.yaml:4: lists and mappings are nested more than 68 deep: keep the data elsewhere, and pass where it is",
    ),
    "JSON's NaN": (
        '{"version": 1, "entries":\n{"NaN": NaN}}',
        "s.yaml:2: NaN is not JSON: give a finite number, or null",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_one_line(app: Any, name: str) -> None:
    """It names the file and the line, and what to write."""
    data, line = BROKEN[name]
    assert said(app, data) == [line]


def test_a_bomb_costs_nothing(app: Any) -> None:
    """Ten levels of aliases would be ten billion values; fifty megabytes are not looked at."""
    levels = [f"  a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10 if n else ['1'])}]\n" for n in range(10)]
    assert said(app, HEAD + "".join(levels)) == [
        "s.yaml:4: &a0 is an anchor: leave it out; text that begins with & must be in quotes"
    ]
    assert said(app, b"[" * (50 << 20)) == [
        f"s.yaml:1: the file has more than {MOST_BYTES >> 20} MiB: make several of it, each with an owner of its own"
    ]
    assert len(said(app, b"[" * 1_000_000)) == 1


def test_the_head_of_a_file(app: Any) -> None:
    """Unknown fields, another version and entries that are none are each a line."""
    assert said(app, "version: 2\nowner: [x]\nentrys: {}\n") == [
        "s.yaml:1: entries is missing: write entries by name, or {} for none",
        "s.yaml:1: version = 2: this release reads version 1",
        "s.yaml:2: owner = ['x']: give 1 to 200 printable characters",
        "s.yaml:3: there is no field entrys; did you mean entries?",
    ]
    assert said(app, "entries: []") == [
        "s.yaml:1: entries = []: write entries by name, not a list or a text",
        "s.yaml:1: version is missing: write 'version: 1'",
    ]
    assert said(app, "version: on\nentries: off\n") == [
        "s.yaml:1: version: on is true to some readers of YAML and text to others: write true, or 'on' in quotes",
        "s.yaml:2: entries: off is false to some readers of YAML and text to others: write false, or 'off' in quotes",
    ]


def test_no_entries_must_be_said(app: Any) -> None:
    """A template that came out empty must not prune everything."""
    assert said(app, "version: 1\nentries:\n") == [
        "s.yaml:2: entries is missing: write entries by name, or {} for none"
    ]
    assert said(app, "version: 1\nentries: {}\n") == []


def test_all_mistakes_of_all_entries_are_found_with_their_lines(app: Any) -> None:
    """Of fields by themselves, and, if there are none, of what they say together."""
    text = (
        HEAD
        + """\
  alone:
    task: shop.tidy
    schedule: 5x
    args: 5
    kwargs: [1]
    options:
      neli_misfire: maybe
      priority: 1000
      quue: slow
    paused: 1
    note: [x]
    colour: red
  together:
    task: shop.tidy
    schedule: 5m
    kwargs:
      c: 1
  nothing: 5
  empty: {}
  "bell\\a": {task: t, schedule: 5m}
  alone: {task: t, schedule: 5m}
  good: {task: t, schedule: 5m}
  odd:
    task: t
    schedule: 5m
    kwargs: {at: {__type__: moment, __value__: 1}}
"""
    )
    lines = [each.removeprefix("s.yaml:") for each in said(app, text)]
    assert lines == [
        "6: alone: schedule = '5x': there is no unit x; write w, d, h, m, s or ms: '5m', '1h30m', 'every 2 hours'",
        "7: alone: args = 5: give a list",
        "8: alone: kwargs = [1]: give a dict with names for keys",
        "10: alone: neli_misfire = 'maybe': give one of fire_once, fire_all, skip",
        "11: alone: options: priority = 1000: give a whole number from 0 to 255",
        "12: alone: options: there is no option quue; did you mean queue?",
        "13: alone: paused = 1: write true or false",
        "14: alone: note = ['x']: give 1 to 1024 printable characters",
        "15: alone: there is no field colour; there are args, kwargs, note, options, paused, schedule, task",
        (
            "19: together: kwargs = {'c': 1}: shop.tidy does not take these arguments: "
            "tidy() got an unexpected keyword argument 'c'"
        ),
        "21: nothing: 5: write fields by name: task, schedule, args, kwargs, options, paused, note",
        "22: empty: schedule is missing: write a schedule, such as 5m or '*/5 * * * *'",
        "22: empty: task is missing: write the name of a task, such as shop.tasks.tidy_up",
        "23: bell\\x07: name = 'bell\\x07': give 1 to 512 printable characters",
        "24: entries: 'alone' is there twice, first in line 4: leave one out",
        "29: odd: kwargs: {'__type__': 'moment', '__value__': 1} has a __type__ that does not exist",
    ]
    assert list(document(app, text).entries) == ["good"]


def test_an_entry_may_be_as_large_as_put_allows(app: Any) -> None:
    """What no record can hold is a mistake of the file."""
    [line] = said(app, f"{HEAD}  a: {{task: t, schedule: 5m, args: [{'x' * 300_000}]}}\n")
    assert line.startswith("s.yaml:4: a: args: the definition has 300")


def test_text_needs_no_quotes_where_only_text_makes_sense(app: Any) -> None:
    """Names, tasks, schedules and notes are what stands there, whatever YAML takes them for."""
    text = (
        "version: 1\nowner: 42\nentries:\n"
        "  on: {task: on, schedule: 2027-01-01T10:00:00Z, note: 5}\n"
        "  12:30: {task: t, schedule: 5m}\n"
    )
    found = document(app, text)
    assert found.mistakes == []
    assert found.owner == "42"
    assert [
        (name, each.definition.task, each.definition.schedule, each.note) for name, each in found.entries.items()
    ] == [
        ("on", "on", "at:2027-01-01T10:00:00Z", "5"),
        ("12:30", "t", "PT5M", ""),
    ]


SAME = {
    "12:30:00": "12:30:00", "8080:80": "8080:80", "0x1f": 31, "-7": -7, "1.5": 1.5, "~": None, "null": None,
    "true": True, "False": False, "y": "y", "1.2.3": "1.2.3",
    "'on'": "on", '"010"': "010", "=": "=", "0": 0, "007a": "007a",
}  # fmt: skip


@pytest.mark.parametrize("text", SAME)
def test_what_every_reader_of_yaml_takes_for_the_same_is_that(app: Any, text: str) -> None:
    """And a time of the day is text, not a number to the base of sixty."""
    found = document(app, f"{HEAD}  a:\n    task: t\n    schedule: 5m\n    args:\n    - {text}\n")
    [value] = found.entries["a"].definition.args
    assert (value, type(value)) == (SAME[text], type(SAME[text]))


@pytest.mark.parametrize(
    "text",
    ["on", "Off", "yes", "NO", "010", "08", "1e3", "1.5e3", "1_000", "0o17", "0b11", "2026-12-01", ".inf", "+.NaN"],
)
def test_what_readers_of_yaml_differ_on_must_be_said(app: Any, text: str) -> None:
    """A country code would be false, a part number eight, a commit a number."""
    if text == "+.NaN":
        assert said(app, f"{HEAD}  a: {{task: t, schedule: 5m, args: [.NaN]}}\n")
        return
    [line] = said(app, f"{HEAD}  a:\n    task: t\n    schedule: 5m\n    args:\n    - x\n    - {text}\n")
    assert line.startswith("s.yaml:9: a: args: ")
    assert f"'{text}' in quotes" in line or "give a finite number" in line


def test_what_is_in_doubt_is_one_mistake(app: Any) -> None:
    """It is not missing, too, nor does a task lack it."""
    text = f"{HEAD}  a: on\n  b: {{task: shop.tidy, schedule: 5m, args: 010}}\n  c: {{task: t, schedule: 5m, <<: 1}}\n"
    assert [line.partition(": ")[2][:30] for line in said(app, text)] == [
        "a: on is true to some readers ", "b: args: readers of YAML diffe", "c: << merges nothing here: wri",
    ]  # fmt: skip
    assert document(app, text).entries == {}


def test_a_file_of_json_is_read_with_its_lines(app: Any) -> None:
    """Surrogate pairs, tabs and keys that are there twice included; it needs no PyYAML."""
    text = (
        '{"version": 1,\n\t"entries": {"a\\ud83d\\ude00": {"task": "t",\n"schedule": "5x"},\n'
        '"b": {"task": "t", "task": "u"}}}'
    )
    assert said(app, text, "s.json") == [
        "s.json:3: a😀: schedule = '5x': there is no unit x; write w, d, h, m, s or ms: '5m', '1h30m', 'every 2 hours'",
        "s.json:4: b: 'task' is there twice, first in line 4: leave one out",
        "s.json:4: b: schedule is missing: write a schedule, such as 5m or '*/5 * * * *'",
    ]
    assert said(app, '{"version": 1,\n "entries": }', "s.json") == ["s.json:2: is not JSON: Expecting value"]


def test_without_pyyaml_one_line_says_what_to_install(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON is read all the same."""
    monkeypatch.setitem(sys.modules, "yaml", None)
    monkeypatch.delitem(sys.modules, "celery_neli.periodic.as_code.scalars", raising=False)
    assert said(app, HEAD) == ['s.yaml:1: a file that is not JSON needs PyYAML: pip install "celery-neli[yaml]"']
    assert said(app, '{"version": 1, "entries": {}}') == []


def test_the_file_of_the_documents_is_one(app: Any) -> None:
    """As pasted; and no field is left out of it."""
    page = (Path(__file__).parents[2] / "docs" / "schedule.md").read_text(encoding="utf-8")
    [text] = re.findall(r"^```yaml\n(version: .*?)^```$", page, re.MULTILINE | re.DOTALL)
    found = document(app, text)
    assert found.mistakes == []
    assert found.owner == "team-billing"
    fields = {line.strip().partition(":")[0] for line in text.splitlines() if line.startswith("    ")}
    assert set(FIELDS) <= fields


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.text(), json_values, max_size=4))
@example({"a": ["{", '"', "\\", ":,"]})
def test_json_is_read_as_json_reads_it(value: dict[str, Any]) -> None:
    """The lines cost no value."""
    for indent in (None, 2):
        for as_ascii in (True, False):
            data = json.dumps(value, indent=indent, ensure_ascii=as_ascii).encode("utf-8", "surrogatepass")
            found = parse(data, is_text=lambda path: False, as_json=True)
            assert (found.value, found.mistakes) == (value, [])


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200) | st.text(alphabet="ab:-[]{}&*!|>'\"#%@\n\t 01,?", max_size=60).map(str.encode))
def test_no_bytes_raise(app: Any, data: bytes) -> None:
    """Whatever a file holds, it is entries or mistakes."""
    said(app, data)
