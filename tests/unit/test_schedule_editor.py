"""Changes of the runtime schedule: what each of them stores, who did it, and what is refused."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from celery.schedules import crontab

from celery_neli.exceptions import ConfigurationError, NeliError
from celery_neli.periodic.editor import default_author
from celery_neli.periodic.view import entry_names
from celery_neli.schedule_topic.codec import ENTRY, Definition, State, decode_definition
from tests.unit.schedulers import make_app
from tests.unit.schedules import NOON, Desk

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def desk() -> Desk:
    return Desk()


# -- put --


def test_a_new_entry_owes_no_slot_of_the_past(desk: Desk) -> None:
    """Its first slot is the first one after it was put."""
    desk.put("e", args=[1], options={"queue": "q"})
    found = desk.store.definition("e")
    assert (found.task, found.schedule, found.args, found.options) == ("t", "PT1M", [1], {"queue": "q"})
    assert (found.since, found.paused, found.static) == (NOON, False, False)
    assert desk.look("e").next == NOON + 60


def test_to_put_the_same_again_writes_nothing(desk: Desk) -> None:
    """Every process may put its entries when it starts."""
    desk.put("e", 60, args=[1])
    desk.now += 30
    desk.put("e", timedelta(minutes=1), args=(1,))
    assert len(desk.store.writes) == 1


def test_a_change_keeps_the_rhythm(desk: Desk) -> None:
    """Other arguments do not move the next slot."""
    desk.put("e")
    desk.now += 30
    desk.put("e", args=[5], kwargs={"a": 1})
    found = desk.store.definition("e")
    assert found.since == NOON
    assert [change.what for change in found.changes] == ["added", "changed args, kwargs"]
    assert desk.look("e").next == NOON + 60


def test_another_schedule_begins_now(desk: Desk) -> None:
    """Slots that the new schedule had in the past are not owed."""
    desk.put("e", "0 0 1 * *")
    desk.now += 30
    desk.put("e", "*/5 * * * *")
    found = desk.store.definition("e")
    assert found.since == NOON + 30
    assert found.changes[-1].what == "changed schedule 0 0 1 * * -> */5 * * * *"


def test_a_paused_entry_stays_paused_when_it_is_put(desk: Desk) -> None:
    """A process that starts does not undo what an operator did."""
    desk.put("e")
    desk.editor().pause("e")
    desk.put("e", "PT5M")
    assert desk.store.definition("e").paused
    assert desk.look("e").next is None


def test_a_name_of_beat_schedule_cannot_be_put(desk: Desk) -> None:
    """There would be two truths."""
    with pytest.raises(ConfigurationError, match="'static': beat_schedule has"):
        desk.put("static")
    assert desk.store.writes == []


def test_default_entries_are_of_beat_schedule(tmp_path: Path) -> None:
    """celery.backend_cleanup, which every beat adds for a backend that does not expire results by itself."""
    app = make_app(result_backend=f"file://{tmp_path}", beat_schedule={})
    app.conf.result_expires = 60
    desk = Desk(app)
    with pytest.raises(ConfigurationError, match="beat_schedule has"):
        desk.put("celery.backend_cleanup")
    assert desk.look("celery.backend_cleanup").schedule == "0 4 * * *"


@pytest.mark.parametrize("schedule", ["at:2026-06-01T11:59:59Z", "0 0 30 2 *"])
def test_a_time_that_never_comes_is_refused(desk: Desk, schedule: str) -> None:
    """It would be kept for nothing."""
    with pytest.raises(ConfigurationError, match="schedule = "):
        desk.put("e", schedule)
    assert desk.store.writes == []


def test_a_one_off_that_is_over_may_be_put_again_as_it_was(desk: Desk) -> None:
    """Until it is removed, it is there: nothing changes."""
    desk.put("e", "at:2026-06-01T13:00:00Z")
    desk.now += 7200
    desk.put("e", "at:2026-06-01T13:00:00Z")
    assert len(desk.store.writes) == 1


def test_nothing_is_stored_of_what_is_refused(desk: Desk) -> None:
    """Neither of a new entry nor over an old one."""
    desk.put("e")
    for name in ("e", "new"):
        with pytest.raises(ConfigurationError):
            desk.put(name, options={"nonsense": 1})
    assert len(desk.store.writes) == 1


# -- pause, resume, remove --


def test_slots_of_a_pause_are_not_missed(desk: Desk) -> None:
    """They end with the moment of the resumption."""
    desk.put("e")
    desk.editor().pause("e")
    assert desk.store.definition("e").since == NOON
    desk.now += 3600
    desk.editor().resume("e")
    found = desk.store.definition("e")
    assert (found.paused, found.since) == (False, NOON + 3600)
    assert desk.look("e").next == NOON + 3660


def test_an_entry_of_beat_schedule_can_be_paused(desk: Desk) -> None:
    """What is stored is the pause alone; after it, no slot of the pause is owed."""
    desk.editor().pause("static")
    found = desk.store.definition("static")
    assert (found.task, found.schedule, found.static, found.paused) == (None, None, True, True)
    assert desk.look("static").paused
    desk.now += 3600
    desk.editor().resume("static")
    found = desk.store.definition("static")
    assert (found.static, found.paused, found.since) == (True, False, NOON + 3600)
    assert [change.what for change in desk.look("static").changes] == ["paused", "resumed"]


def test_to_pause_or_resume_twice_writes_once(desk: Desk) -> None:
    """The second one changes nothing, not even `since`."""
    desk.put("e")
    desk.editor().resume("e")
    for _ in range(2):
        desk.editor().pause("e")
    assert len(desk.store.writes) == 2


def test_a_one_off_whose_time_passed_in_a_pause_is_not_resumed(desk: Desk) -> None:
    """It would never run, and no line would say so."""
    desk.put("e", "at:2026-06-01T13:00:00Z")
    desk.editor().pause("e")
    desk.now += 7200
    with pytest.raises(ConfigurationError, match="never comes"):
        desk.editor().resume("e")
    assert desk.store.definition("e").paused


def test_an_entry_whose_schedule_cannot_be_read_is_not_resumed(desk: Desk) -> None:
    """A newer release may have written it; the error says what is wrong with it."""
    desk.store.set("e", Definition(task="t", schedule="every full moon", paused=True))
    with pytest.raises(ConfigurationError, match="schedule = 'every full moon': write a crontab"):
        desk.editor().resume("e")
    assert desk.store.definition("e").paused


def test_what_is_removed_is_gone(desk: Desk) -> None:
    """What says so is a definition, which the beat that leads deletes later; a new entry of that name starts over."""
    desk.put("e", args=[1])
    desk.store.set("e", State(last=NOON, runs=5, epoch=1))
    desk.now += 5
    desk.editor().remove("e")
    assert "e" not in entry_names(desk.editor())
    marker = decode_definition(desk.store.values[ENTRY, "e"])
    assert (marker.removed, marker.args, marker.changes[-1].what) == (True, [], "removed")
    desk.now += 5
    desk.put("e")
    found = desk.look("e")
    assert [each.what for each in found.changes] == ["added"]
    assert (found.runs, found.last) == (0, None)


def test_an_entry_of_beat_schedule_cannot_be_removed(desk: Desk) -> None:
    """Nor can the record of its pause: its slots would be owed."""
    desk.editor().pause("static")
    desk.store.set("static", State(last=NOON, runs=5, epoch=1))
    before = dict(desk.store.values)
    with pytest.raises(ConfigurationError, match="beat_schedule"):
        desk.editor().remove("static")
    assert desk.store.values == before


def test_a_runtime_entry_that_beat_schedule_hides_can_be_removed(desk: Desk) -> None:
    """A deploy may bring a name that was put before. The state is that of the entry in beat_schedule."""
    desk.store.set("static", Definition(task="old", schedule="PT5M", paused=True, since=NOON + 60))
    desk.store.set("static", State(last=NOON, runs=5, epoch=1))
    shown = desk.look("static")
    assert "hides" in str(shown.problem)
    assert (shown.task, shown.paused, shown.next) == ("t", False, NOON + 60)
    with pytest.raises(NeliError, match="remove the latter first"):
        desk.editor().pause("static")
    desk.editor().remove("static")
    assert desk.store.definition("static") is None
    assert desk.store.state("static").runs == 5


@pytest.mark.parametrize("what", ["pause", "resume", "remove", "run_now"])
def test_an_unknown_name_is_an_error_with_the_nearest_one(desk: Desk, what: str) -> None:
    """Nothing is stored for it."""
    desk.put("tidy-up")
    with pytest.raises(NeliError, match="no entry 'tidyup'; did you mean 'tidy-up'"):
        getattr(desk.editor(), what)("tidyup")
    assert len(desk.store.writes) == 1


class Silent:
    """Its `repr` raises."""

    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize("name", [None, 5, b"tidy-up", ["tidy-up"], Silent()])
@pytest.mark.parametrize("what", ["pause", "resume", "remove", "run_now"])
def test_what_is_no_name_is_refused_by_its_field(desk: Desk, what: str, name: Any) -> None:
    """Whatever it is; nothing is read for it."""
    with pytest.raises(ConfigurationError, match=r"^name = .*: give the name of an entry"):
        getattr(desk.editor(), what)(name)


def test_the_pause_of_what_beat_schedule_has_no_more_is_no_entry(desk: Desk) -> None:
    """It can be removed, and the name can be put."""
    desk.store.set("gone", Definition(task=None, schedule=None, static=True, paused=True))
    assert "gone" not in entry_names(desk.editor())
    with pytest.raises(NeliError, match="no entry 'gone'"):
        desk.editor().resume("gone")
    desk.put("gone")
    assert not desk.store.definition("gone").paused
    desk.editor().remove("gone")


# -- who, when --


def test_who_did_it_is_kept(desk: Desk) -> None:
    """With the time; by default the user and the host."""
    desk.put("e")
    desk.now += 1
    desk.editor(by=None).pause("e")
    first, second = desk.look("e").changes
    assert (first.by, first.at, first.what) == ("alice", NOON, "added")
    assert (second.by, second.at, second.what) == (default_author(), NOON + 1, "paused")
    assert "@" in default_author()


@pytest.mark.parametrize("by", ["", " ", "a\nb", 5, "x" * 300, Silent()])
def test_who_is_a_short_text(desk: Desk, by: Any) -> None:
    """The error names the field."""
    with pytest.raises(ConfigurationError, match="by = "):
        desk.editor(by=by)


# -- looking --


def test_an_entry_is_shown_with_its_state(desk: Desk) -> None:
    """The next slot is that after the last one, also if it is overdue."""
    desk.put("e", kwargs={"a": 1})
    desk.store.set("e", State(last=NOON + 60, runs=3, epoch=1, since=NOON))
    found = desk.look("e")
    assert (found.source, found.task, found.kwargs, found.schedule) == ("runtime", "t", {"a": 1}, "PT1M")
    assert (found.last, found.runs, found.next) == (NOON + 60, 3, NOON + 120)
    desk.now += 9999
    assert desk.look("e").next == NOON + 120
    assert found.as_dict()["changes"][0]["by"] == "alice"


def test_entries_of_beat_schedule_are_shown(desk: Desk) -> None:
    """Also those with a schedule that text cannot express."""
    desk.app.conf.beat_schedule["odd"] = {"task": "t", "schedule": type("Odd", (crontab,), {})()}
    found = desk.look("static")
    assert (found.source, found.schedule, found.next, found.since) == ("beat_schedule", "PT1M", NOON + 60, None)
    odd = desk.look("odd")
    assert str(odd.schedule).startswith("<crontab")
    assert odd.next == NOON + 60


def test_what_this_release_cannot_read_is_shown_and_can_be_replaced(desk: Desk) -> None:
    """A newer one wrote it: the list shows it, no change touches half of it, and it can be put again or removed."""
    desk.store.values[ENTRY, "new"] = b'{"v":99}'
    desk.store.set("odd", Definition(task="t", schedule="some future kind"))
    assert entry_names(desk.editor()) == {"static", "new", "odd"}
    assert "version" in str(desk.look("new").problem)
    assert "some future kind" in str(desk.look("odd").problem)
    assert desk.look("odd").schedule == "some future kind"
    with pytest.raises(NeliError, match="'new' cannot be read"):
        desk.editor().pause("new")
    desk.put("new")
    assert desk.look("new").problem is None
    desk.store.values[ENTRY, "new"] = b'{"v":99}'
    desk.editor().remove("new")
    assert entry_names(desk.editor()) == {"static", "odd"}


# -- now --


def test_run_now_sends_the_task_as_beat_does(desk: Desk) -> None:
    """At once, with the entry's options and header, for no slot; and notes who asked."""
    options = {"headers": {"x": 1}, "priority": 5, "neli_misfire": "skip"}
    desk.put("e", task="shop.t", args=[1], kwargs={"a": 2}, options=options)
    result = desk.editor(by="bob").run_now("e")
    with desk.app.connection_for_read() as connection:
        message = connection.SimpleQueue(desk.app.conf.task_default_queue).get(timeout=5)
    assert message.headers["id"] == result.id
    assert (message.headers["task"], message.headers["neli_beat_entry"], message.headers["x"]) == ("shop.t", "e", 1)
    assert (message.headers["periodic_task_name"], "neli_beat_slot" in message.headers) == ("e", False)
    assert message.payload[:2] == [[1], {"a": 2}]
    assert message.properties["priority"] == 5
    assert "neli_misfire" not in message.properties
    found = desk.store.definition("e")
    assert (found.changes[-1].by, found.changes[-1].what, found.since) == ("bob", "run now", NOON)
    assert found.options == options


def test_run_now_of_beat_schedule_stores_nothing(desk: Desk) -> None:
    """It has no definition to note it in."""
    desk.editor().run_now("static")
    assert desk.store.writes == []
    assert desk.app.conf.beat_schedule["static"] == {"task": "t", "schedule": 60.0}
