"""Definitions of runtime entries: checked before anything is stored, and what Celery makes of them."""

from __future__ import annotations

import decimal
import uuid
from datetime import datetime, timezone
from typing import Any

import pytest
from celery.schedules import crontab, schedule

from celery_neli.exceptions import ConfigurationError
from celery_neli.periodic.definition import define, entry_of
from celery_neli.schedule.slots import next_slot
from celery_neli.schedule_topic.codec import Definition, decode_definition, encode_definition
from tests.unit.schedulers import make_app
from tests.unit.schedules import NOON

APP = make_app(timezone="Europe/Berlin")


def defined(**given: Any) -> Definition:
    fields = {"name": "e", "task": "shop.t", "schedule": "PT1M", **given}
    definition = define(APP, fields.pop("name"), fields.pop("task"), fields.pop("schedule"), **fields)
    encode_definition(definition)  # checks its size
    return definition


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"name": ""}, "^name = '': give 1 to 512 printable characters"),
        ({"name": " \u2003"}, "^name = .*: give 1 to 512 printable characters"),
        ({"name": "a\nb"}, "name"),
        ({"name": 5}, "name"),
        ({"task": ""}, "task = ''"),
        ({"task": None}, "task = None"),
        ({"task": "a\nb"}, "task = "),
        ({"schedule": "often"}, "schedule = 'often'"),
        ({"args": "abc"}, "args = 'abc': give a list"),
        ({"args": {"a": 1}}, "args = .*give a list"),
        ({"args": [{1, 2}]}, "args = .*JSON"),
        ({"args": [object()]}, "args = .*JSON"),
        ({"args": [float("nan")]}, "args: nan .*finite"),
        ({"kwargs": [1]}, "kwargs = .*give a dict"),
        ({"kwargs": {1: 2}}, "kwargs = .*give a dict"),
        ({"kwargs": {"a": {1: 2}}}, "kwargs = .*would come back"),
        ({"kwargs": {"a": {"__type__": "what", "__value__": 1}}}, "kwargs = .*JSON"),
        ({"options": {"quue": "q"}}, "quue; did you mean queue"),
        ({"options": {"__type__": "q"}}, "no option __type__; there are add_to_parent, "),
        ({"options": {"task_id": "1"}}, "task_id cannot be set"),
        ({"options": {"eta": "1"}}, "eta cannot be set.*countdown"),
        ({"options": {"neli_misfire": "often"}}, "neli_misfire = 'often'"),
        ({"options": {"neli_misfire_max": 0}}, "neli_misfire_max = 0"),
        ({"options": {"neli_overlap": "never"}}, "neli_overlap = 'never'"),
        ({"options": {"neli_overlap": "skip"}}, "no result backend"),
        ({"options": {"neli_overlap": "queue_one"}}, "neli_overlap = 'queue_one', but there is no result backend"),
        ({"options": {"neli_overlap": "cancel_other"}}, "'cancel_other', but there is no result backend"),
        *(
            ({"options": {"neli_pause_on_failure": value}}, "neli_pause_on_failure = .*: give a whole number from 1 to")
            for value in (0, -1, 101, 1.5, True, "3")
        ),
        ({"args": ["x" * 300_000]}, "args: .*KiB"),
    ],
)
def test_what_cannot_be_is_refused_by_its_field(given: dict[str, Any], says: str) -> None:
    """The error names the field, before anything was stored."""
    with pytest.raises(ConfigurationError, match=says):
        defined(**given)


def test_failures_cannot_be_counted_without_the_run_history() -> None:
    """The one line names option and setting."""
    app = make_app()
    app.conf.neli_history = False
    with pytest.raises(ConfigurationError, match=r"neli_pause_on_failure = 3: .* neli_history = False: set it to True"):
        define(app, "e", "shop.t", "PT1M", options={"neli_pause_on_failure": 3})
    define(app, "e", "shop.t", "PT1M", options={"neli_pause_on_failure": None})


def test_a_definition_makes_celerys_entry() -> None:
    """As if it had run at `since`, in the time zone of its schedule."""
    found = defined(schedule="0 4 * * *", args=(1, 2), kwargs={"a": [3]}, options={"queue": "q", "expires": 60})
    entry = entry_of(found, "e", APP)
    assert (entry.name, entry.task, entry.schedule) == ("e", "shop.t", crontab(0, 4))
    assert (list(entry.args), entry.kwargs, entry.options) == ([1, 2], {"a": [3]}, {"queue": "q", "expires": 60})
    assert entry.app is APP
    assert entry.total_run_count == 0
    assert entry.last_run_at == datetime(1970, 1, 1, tzinfo=timezone.utc)
    later = Definition(task="t", schedule="PT1M", since=NOON)
    assert entry_of(later, "e", APP).last_run_at.timestamp() == NOON
    assert str(entry_of(later, "e", APP).last_run_at.tzinfo) == "Europe/Berlin"


def test_what_jsons_cannot_say_comes_back() -> None:
    """Datetimes and the like, through the bytes that are stored."""
    args = [datetime(2026, 6, 1, tzinfo=timezone.utc), decimal.Decimal("1.50"), uuid.UUID(int=5), b"\x00\xff"]
    options = {"expires": datetime(2027, 1, 1, tzinfo=timezone.utc)}
    found = decode_definition(encode_definition(defined(args=args, kwargs={"a": {"b": args}}, options=options)))
    entry = entry_of(found, "e", APP)
    assert list(entry.args) == args
    assert entry.kwargs == {"a": {"b": args}}
    assert entry.options == options


def test_a_task_may_be_given_itself() -> None:
    """Its name is kept."""
    app = make_app()

    @app.task(name="shop.own", shared=False)
    def own() -> None:
        """Nothing."""

    assert define(app, "e", own, "PT1M").task == "shop.own"


def test_entries_of_one_schedule_share_it() -> None:
    """A hundred thousand entries have few schedules: they cost the memory and the time of one."""
    one, other = (entry_of(Definition(task="t", schedule="*/7 * * * *"), name, APP) for name in "ab")
    assert one.schedule is other.schedule
    assert entry_of(Definition(task="t", schedule="*/7 * * * *"), "c", make_app()).schedule is not one.schedule


def test_entries_share_nothing_that_a_task_may_change() -> None:
    """The definition stays what it was."""
    found = defined(kwargs={"a": [1]}, options={"headers": {"x": 1}})
    entry_of(found, "e", APP).kwargs["a"].append(2)
    entry_of(found, "e", APP).options["headers"]["y"] = 2
    assert (found.kwargs, found.options) == ({"a": [1]}, {"headers": {"x": 1}})


@pytest.mark.parametrize(
    ("definition", "says"),
    [
        (Definition(task="t", schedule="often"), "often"),
        (Definition(task="t", schedule="P1Y"), "years"),
        (Definition(task="t", schedule="PT1M", options={"neli_misfire": "often"}), "neli_misfire"),
        (Definition(task="t", schedule="PT1M", args=[{"__type__": "what", "__value__": 1}]), "Unsupported"),
        (Definition(task=None, schedule=None, static=True, paused=True), "beat_schedule"),
    ],
)
def test_a_definition_that_cannot_be_read_is_an_error(definition: Definition, says: str) -> None:
    """A newer release may have stored it: the error names the entry, so that the others go on without it."""
    with pytest.raises(ConfigurationError, match=f"beat entry 'e': .*{says}"):
        entry_of(definition, "e", APP)


def test_an_interval_is_celerys_own() -> None:
    """Not a class of ours: the scheduler reckons its slots."""
    assert type(entry_of(defined(schedule=30), "e", APP).schedule) is schedule


def test_options_shape_an_entry_however_often_it_is_made() -> None:
    """The check of options that were seen before is left out, not what they mean."""
    definition = defined(schedule="0 7 * * *", options={"neli_timezone": "Asia/Tokyo"})
    noon = datetime(2026, 3, 2, 12, tzinfo=timezone.utc)
    slots = [next_slot(entry_of(definition, name, APP).schedule, noon) for name in ("a", "b", "a")]
    assert [f"{each.astimezone(timezone.utc):%H:%M}" for each in slots if each is not None] == ["22:00"] * 3
