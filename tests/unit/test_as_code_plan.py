"""A file of the schedule against what is there: what is written as a file, and what is different."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_neli.exceptions import ConfigurationError
from celery_neli.periodic.as_code.document import Document, read
from celery_neli.periodic.as_code.plan import Plan, Present, as_dict, compare, lines_of
from celery_neli.periodic.as_code.writing import as_json, as_yaml
from celery_neli.periodic.definition import define
from celery_neli.schedule_topic.codec import Change, Definition
from tests.unit.schedulers import make_app
from tests.unit.schedules import NOON
from tests.unit.test_as_code_reading import json_values

APP = make_app()


def entry(task: str = "t", schedule: Any = "5m", **given: Any) -> Definition:
    """A definition as it stands in the topic; `given`: those of `define`, or of the definition itself."""
    asked = {name: given.pop(name) for name in ("args", "kwargs", "options") if name in given}
    return replace(define(APP, "e", task, schedule, **asked), version="v1", **given)


def document(text: str) -> Document:
    found = read(APP, text.encode(), file="s.yaml")
    assert found.mistakes == []
    return found


def plan(text: str, *, adopt: bool = False, static: tuple[str, ...] = (), **there: Definition) -> Plan:
    present = Present(entries={name.replace("_", "-"): each for name, each in there.items()}, static=static)
    return compare(APP, document(text), present, adopt=adopt, now=NOON)


def shown(found: Plan) -> list[str]:
    return [line for step in found.steps for line in lines_of(step)]


HEAD = "version: 1\nowner: team\nentries:\n"

# -- writing --


def test_a_file_looks_as_a_person_would_write_it() -> None:
    """By name, without what says nothing, with quotes only where text could be something else."""
    entries = {
        "report-42": entry(
            "shop.report", "0 7 * * mon-fri", args=[42, "on"], kwargs={"on": None, "deep": True, "at": [[1], 1e20]},
            options={"queue": "slow", "neli_misfire": "skip"}, paused=True,
        ),
        "12:30": entry("shop.tidy", "*/5 * * * *", kwargs={"text": "a\nb\n"}, paused=True, until=NOON),
        "noted": entry(changes=(Change(at=1, by="a", what="added", note="why: so"),)),
    }  # fmt: skip
    assert (
        as_yaml("team", entries.items())
        == """\
version: 1
owner: team
entries:
  '12:30':
    task: shop.tidy
    schedule: '*/5 * * * *'
    kwargs:
      text: |
        a
        b
  noted:
    task: t
    schedule: PT5M
    note: 'why: so'
  report-42:
    task: shop.report
    schedule: 0 7 * * mon-fri
    args: [42, 'on']
    kwargs:
      at:
      - [1]
      - 1.0e+20
      deep: true
      'on': null
    options:
      neli_misfire: skip
      queue: slow
    paused: true
"""
    )


OLD = datetime.fromisoformat("1900-01-01")
values = json_values | st.datetimes(timezones=st.just(timezone.utc), min_value=OLD) | st.dates()
names = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=20).filter(str.isprintable)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(names, st.tuples(st.lists(values, max_size=3), st.dictionaries(st.text(), values, max_size=3))))
def test_what_is_written_is_read_as_what_it_was(given_values: dict[str, Any]) -> None:
    """Every name and value, datetimes included; and the same entries give the same bytes."""
    entries: dict[str, Definition] = {}
    for name, (args, kwargs) in given_values.items():
        try:
            entries[name] = define(APP, name, "t", "5m", args=args, kwargs=kwargs)
        except ConfigurationError:  # JSON does not have every value, nor UTF-8 every text
            continue
    for write in (as_yaml, as_json):
        text = write("a: b", entries.items())
        found = read(APP, text.encode(), file="s")
        assert found.mistakes == []
        assert {name: each.definition for name, each in found.entries.items()} == entries
        assert found.owner == "a: b"
        again = [(name, each.definition) for name, each in found.entries.items()]
        assert write("a: b", reversed(again)) == text


def test_text_that_yaml_takes_for_something_else_is_in_quotes() -> None:
    """Whichever version of YAML does."""
    texts = ["<<", "=", "~", "", "on", "010", "1e3", "2026-12-01", "- a", "a: b", "#", "@daily", "*/5"]
    kept = entry(args=texts, kwargs=dict.fromkeys(texts))
    found = document(as_yaml("team", [("a", kept)])).entries["a"].definition
    assert (found.args, found.kwargs) == (texts, kept.kwargs)


def test_values_of_python_survive() -> None:
    """Kombu marks them, and a file shows the marks."""
    args = [datetime(2026, 12, 1, 10, tzinfo=timezone.utc), date(2026, 12, 1), Decimal("1.50"), b"\xff"]
    text = as_yaml("", [("a", entry(args=args))])
    assert "__type__: datetime\n      __value__: '2026-12-01T10:00:00+00:00'" in text
    assert document(text).entries["a"].definition.args == entry(args=args).args


# -- comparing --


def test_what_is_the_same_is_no_difference() -> None:
    """However it is written: the schedule in words, fields that say nothing left out."""
    found = plan(f"{HEAD}  a: {{task: t, schedule: every 5 minutes, args: []}}\n", a=entry(owner="team"))
    assert (found.steps, found.mistakes, found.notes, found.unchanged) == ([], [], [], 1)


def test_every_difference_is_shown_with_both_values() -> None:
    """Arguments and options key by key; entries by name."""
    text = (
        HEAD
        + """\
  new: {task: shop.new, schedule: 5m, paused: true}
  changed: {task: shop.b, schedule: 10m, args: [1], kwargs: {a: 1, b: 2}, options: {queue: slow}}
"""
    )
    old = entry("shop.a", kwargs={"a": True, "c": 3}, owner="team", since=5.0)
    found = plan(text, changed=old, gone=entry(owner="team"), other=entry(owner="else"), unowned=entry())
    assert shown(found) == [
        "~ changed",
        "    task: shop.a -> shop.b",
        "    schedule: PT5M -> PT10M",
        "    args: [] -> [1]",
        "    kwargs.a: true -> 1",
        "    kwargs.b: - -> 2",
        "    kwargs.c: 3 -> -",
        "    options.queue: - -> slow",
        "- gone",
        "+ new: shop.new, PT5M, paused",
    ]
    assert [(each.name, each.version) for each in found.steps] == [("changed", "v1"), ("gone", "v1"), ("new", "")]
    assert as_dict(found.steps[1]) == {"name": "gone", "action": "prune", "owner": "team", "fields": {}}


def test_numbers_that_python_takes_for_equal_are_different() -> None:
    """A task may tell 1 from true and from 1.0."""
    found = plan(
        f"{HEAD}  a: {{task: t, schedule: 5m, args: [1, {{b: 1}}]}}\n", a=entry(args=[True, {"b": 1.0}], owner="team")
    )
    assert shown(found) == ["~ a", '    args: [true, {"b": 1.0}] -> [1, {"b": 1}]']
    assert (
        plan(
            f"{HEAD}  a: {{task: t, schedule: 5m, kwargs: {{b: {{c: 1, d: 2}}}}}}\n",
            a=entry(kwargs={"b": {"d": 2, "c": 1}}, owner="team"),
        ).steps
        == []
    )


@pytest.mark.parametrize(("owner", "line"), [
    ("else", "! a: is an entry of 'else': --adopt takes it over"),
    ("", "! a: is there and has no owner: --adopt takes it over"),
])  # fmt: skip
def test_an_entry_of_another_owner_is_foreign_unless_adopted(owner: str, line: str) -> None:
    """Even if nothing else is different."""
    text = f"{HEAD}  a: {{task: t, schedule: 5m}}\n"
    assert shown(plan(text, a=entry(owner=owner))) == [line]
    adopted = plan(text, adopt=True, a=entry(owner=owner))
    assert shown(adopted) == ["~ a", f"    owner: {owner or '-'} -> team"]
    unowned = plan(text.replace("owner: team\n", ""), adopt=True, a=entry(owner="else"))
    assert shown(unowned) == ["! a: is an entry of 'else': --adopt takes it over"]


def test_a_file_without_owner_prunes_nothing() -> None:
    """Entries without owner are those that the application put."""
    found = plan("version: 1\nentries: {}\n", a=entry(), b=entry(owner="team"))
    assert found.steps == []


def test_a_pause_is_managed_only_if_the_file_speaks_of_it() -> None:
    """An operator's own survives; one that ends by itself is not the one that the file wants."""
    silent = f"{HEAD}  a: {{task: t, schedule: 5m}}\n"
    paused, running = (f"{HEAD}  a: {{task: t, schedule: 5m, paused: {each}}}\n" for each in ("true", "false"))
    held = entry(owner="team", paused=True)
    assert plan(silent, a=held).steps == plan(paused, a=held).steps == []
    assert shown(plan(running, a=held)) == ["~ a", "    paused: true -> false"]
    assert shown(plan(paused, a=entry(owner="team"))) == ["~ a", "    paused: false -> true"]
    for_a_time = replace(held, until=NOON + 60)
    assert plan(silent, a=for_a_time).steps == []
    assert shown(plan(paused, a=for_a_time)) == ["~ a", "    paused: for a time -> true"]
    assert not plan(paused, a=for_a_time).steps[0].puts


def test_a_name_of_beat_schedule_is_a_mistake() -> None:
    """An entry has one source."""
    found = plan(f"{HEAD}  a: {{task: t, schedule: 5m}}\n", static=("a",))
    assert found.mistakes == [
        (4, "a: beat_schedule has an entry of that name: change it there, or take it out of this file")
    ]


def test_what_cannot_be_read_is_not_replaced() -> None:
    """A newer release may have written it."""
    text = f"{HEAD}  a: {{task: t, schedule: 5m}}\n"
    found = compare(
        APP, document(text), Present(entries={}, unreadable={"a": "its version is 2"}), adopt=True, now=NOON
    )
    assert found.mistakes == [(4, "a: its definition cannot be read here: its version is 2: remove it first")]


def test_a_time_that_is_over_is_a_note_for_a_new_entry_and_a_mistake_for_a_changed_one() -> None:
    """A one-off entry has run, and its file is still good."""
    text = (
        HEAD
        + """\
  once: {task: t, schedule: at:2026-05-01T00:00:00Z}
  moved: {task: t, schedule: at:2026-05-01T00:00:00Z}
  still: {task: t, schedule: at:2026-05-01T00:00:00Z}
"""
    )
    late = entry(schedule="at:2026-05-01T00:00:00Z", owner="team")
    found = plan(text, moved=entry(schedule="at:2026-07-01T00:00:00Z", owner="team"), still=late)
    assert found.steps == []
    assert found.notes == [(4, "once: schedule = 'at:2026-05-01T00:00:00Z': its time is over: nothing is put")]
    late_too = plan(f"{HEAD}  still: {{task: t, schedule: at:2026-05-01T00:00:00Z, args: [1]}}\n", still=late)
    assert (shown(late_too), late_too.mistakes) == (["~ still", "    args: [] -> [1]"], [])
    assert found.mistakes == [
        (5, "moved: schedule = 'at:2026-05-01T00:00:00Z': its time never comes; give one that is ahead"),
    ]
