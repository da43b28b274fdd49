"""`neli_entry_limit`: how many runtime entries there may be."""

from __future__ import annotations

from typing import Any

import pytest

from celery_neli import periodic
from celery_neli.exceptions import ConfigurationError, NeliError
from celery_neli.periodic import editor as editors
from celery_neli.periodic import limits
from tests.unit.schedulers import make_app
from tests.unit.schedules import FakeStore


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> FakeStore:
    store = FakeStore()
    monkeypatch.setattr(editors, "Topic", lambda app: store)
    return store


def _app(limit: Any) -> Any:
    return make_app(neli_scheduler=None, neli_entry_limit=limit)


def test_a_new_entry_over_the_limit_is_refused_and_nothing_is_written(store: FakeStore) -> None:
    app = _app(2)
    periodic.put(app, "a", "t", 60)
    periodic.put(app, "b", "t", 60)
    with pytest.raises(NeliError, match="neli_entry_limit = 2: there are 2 entries, and 1 more would be too many"):
        periodic.put(app, "c", "t", 60)
    assert store.definition("c") is None


def test_entries_that_are_there_can_be_changed_at_the_limit(store: FakeStore) -> None:
    periodic.put(_app(None), "a", "t", 60)
    app = _app(0)
    assert periodic.put(app, "a", "t", 90).schedule == "PT1M30S"
    assert periodic.pause(app, "a").paused
    periodic.remove(app, "a")
    assert store.definition("a") is None


def test_a_change_of_an_entry_that_is_there_counts_nothing(store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    app = _app(1)
    periodic.put(app, "a", "t", 60)
    monkeypatch.setattr(limits, "check_limit", None)
    assert periodic.pause(app, "a").paused


def test_an_entry_that_was_removed_makes_room(store: FakeStore) -> None:
    app = _app(1)
    periodic.put(app, "a", "t", 60)
    periodic.remove(app, "a")
    periodic.put(app, "b", "t", 60)
    with pytest.raises(NeliError, match="neli_entry_limit"):
        periodic.put(app, "a", "t", 60)


def test_an_entry_that_the_same_batch_removes_makes_room(store: FakeStore) -> None:
    app = _app(1)
    periodic.put(app, "a", "t", 60)
    with periodic.batch(app) as batch:
        batch.remove("a")
        batch.put("b", "t", 60)
    assert store.definition("b") is not None


def test_a_change_that_becomes_an_addition_on_the_way_is_counted(store: FakeStore) -> None:
    periodic.put(_app(None), "a", "t", 60)

    def meddle() -> None:
        store.meddle = lambda: None
        periodic.remove(_app(None), "a")
        periodic.put(_app(None), "b", "t", 60)

    store.meddle = meddle
    with pytest.raises(NeliError, match="neli_entry_limit = 1: there are 1 entries, and 1 more"):
        periodic.put(_app(1), "a", "t", 90)
    assert store.definition("a") is None
    assert store.definition("b") is not None


def test_nothing_of_a_batch_is_written_that_would_pass_the_limit(store: FakeStore) -> None:
    app = _app({"x/": 1})
    batch = periodic.batch(app)
    for name in ("x/1", "x/2", "y"):
        batch.put(name, "t", 60)
    with pytest.raises(NeliError, match="there are 0 entries, and 2 more"), batch:
        pass
    assert store.writes == []


def test_the_longest_prefix_of_a_name_counts_alone(store: FakeStore) -> None:
    app = _app({"": 1, "x/": 0, "x/y/": 2})
    for name in ("x/y/1", "x/y/2", "other"):
        periodic.put(app, name, "t", 60)
    with pytest.raises(NeliError, match="neli_entry_limit = 0 for names that begin with 'x/'"):
        periodic.put(app, "x/1", "t", 60)
    with pytest.raises(NeliError, match="neli_entry_limit = 2 for names that begin with 'x/y/'"):
        periodic.put(app, "x/y/3", "t", 60)


def test_a_name_without_a_limited_prefix_is_not_counted(store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "read", None)
    monkeypatch.setattr(store, "look", lambda names, **_: {})
    limits.check_limit(_app({"x/": 0}), ["y"], store.read)


@pytest.mark.parametrize("limit", [-1, 10**400, {}, 1.5, True, "many", {"x/": -1}, {1: 2}, {"x/": None}])
def test_a_limit_that_is_none_is_refused_and_nothing_is_stored(store: FakeStore, limit: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=r"neli_entry_limit = .*: give a whole number from 0 to 1000000000, or a dict"
    ):
        periodic.put(_app(limit), "a", "t", 60)
    assert store.writes == []
