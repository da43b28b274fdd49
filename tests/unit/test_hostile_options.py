"""What a definition says to Celery: whatever passes the check can be sent, and the rest is refused by its field."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from celery_neli.exceptions import ConfigurationError
from celery_neli.periodic.definition import define, entry_of
from celery_neli.periodic.static import check_static
from celery_neli.schedule_topic.codec import Definition, decode_definition, encode_definition
from tests.unit.schedulers import make_app
from tests.unit.schedules import NOON

APP = make_app(timezone="America/Los_Angeles")
GOOD = Definition(task="t", schedule="PT1M", since=NOON)
FIELDS: dict[str, Any] = json.loads(encode_definition(GOOD))
PAIR = {"tasks": [{"task": "t"}] * 2}
CHORD = {"task": "celery.chord", "subtask_type": "chord", "kwargs": {}}


def marked(kind: str, value: Any) -> dict[str, Any]:
    return {"__type__": kind, "__value__": value}


def read(**changed: Any) -> Any:
    """The entry that a beat makes of a definition with other values in some fields, as a stranger may write them."""
    return entry_of(decode_definition(json.dumps({**FIELDS, **changed}).encode()), "e", APP)


@pytest.mark.parametrize(
    "value",
    [marked("bytes", "a"), marked("decimal", "1"), marked("datetime", "2026-01-01T00:00:00")],
)
@pytest.mark.parametrize("field", ["kwargs", "options"])
def test_a_mark_that_makes_no_dict_of_a_dict_is_refused(field: str, value: Any) -> None:
    """Every slot would fail otherwise."""
    with pytest.raises(ConfigurationError, match=rf"^beat entry 'e': {field} = .*: give a dict with names for keys"):
        read(**{field: value})


@pytest.mark.parametrize(
    "options",
    [
        {"expires": "0001-01-01T00:00:00+14:00"},
        {"expires": "9999-12-31T23:59:59-14:00"},
        {"expires": marked("datetime", "0001-01-01T00:00:00")},
        {"expires": marked("datetime", "9999-12-31T23:59:59")},
        {"link": {"task": "t", "args": 5}},
        {"link": {"task": "t", "kwargs": [1]}},
        {"link": {"task": "t", "options": 5}},
        {"link": {"task": "t", "options": {"queue": {}}}},
        {"link": {"task": "t", "options": {"link": {"task": 5}}}},
        {"link": {"task": "t", "subtask_type": "nonsense"}},
        {"link": {"task": " "}},
        {"link_error": [{"task": "t"}, CHORD]},
        {"headers": {"id": "x"}},
        {"headers": {"task": "other"}},
        {"shadow": "a\nb"},
        {"shadow": "x" * 1000},
    ],
)
def test_an_option_that_cannot_be_sent_or_obeyed_is_refused(options: dict[str, Any]) -> None:
    """By who reads it; a worker never sees it. A value is shown with what to give in its place."""
    (name,) = options
    with pytest.raises(
        ConfigurationError, match=rf"^beat entry 'e': options: {name}( = .*: give |: .*cannot be set: )"
    ):
        read(options=options)


@pytest.mark.parametrize(
    "options",
    [
        {"link": {"task": "t"}},
        {"link": [{"task": "t", "args": [1], "kwargs": {"a": 1}, "options": {"queue": "q"}, "subtask_type": None}]},
        {
            "link": {
                "task": "celery.group",
                "kwargs": {"tasks": [{"task": "t"}]},
                "options": {},
                "subtask_type": "group",
            }
        },
        {"link": {"task": "celery.chain", "kwargs": PAIR, "options": {}, "subtask_type": "chain"}},
        {"expires": "2026-01-01T00:00:00Z"},
        {"headers": {"tenant": 5}},
        {"shadow": "größer"},
    ],
)
def test_an_option_that_can_be_sent_passes(options: dict[str, Any]) -> None:
    """As it is."""
    assert read(options=options).options == options


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"serializer": "nonsense"}, "serializer = 'nonsense': this process has none of that name"),
        ({"compression": "nonsense"}, "compression = 'nonsense': this process has none of that name"),
        ({"queue": "q"}, "queue = 'q': is none of task_queues"),
    ],
)
def test_what_this_process_could_not_send_is_refused_at_put_and_told_of_beat_schedule(
    options: dict[str, Any], says: str
) -> None:
    """Another process may know it: who reads it takes it, and an entry of beat_schedule runs."""
    app = make_app(task_create_missing_queues=False)
    with pytest.raises(ConfigurationError, match=rf"^options: {says}"):
        define(app, "e", "t", 60, options=options)
    assert entry_of(replace(GOOD, options=options), "e", app).options == options
    found = check_static({"e": {"task": "t", "schedule": 60, "options": options}}, app)
    assert says in found.doubts["e"][0]
    assert list(found.entries) == ["e"]


def test_a_codec_and_a_queue_that_this_process_knows_are_taken() -> None:
    """Also by another of its names. No queue is added by the question."""
    for app in (make_app(task_create_missing_queues=False, task_default_queue="celery"), make_app()):
        for options in ({"serializer": "json"}, {"compression": "gzip"}, {"queue": "celery"}):
            assert define(app, "e", "t", 60, options=options).options == options
    app = make_app()
    define(app, "e", "t", 60, options={"queue": "elsewhere"})
    assert "elsewhere" not in app.amqp.queues
