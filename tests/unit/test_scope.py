"""`periodic.scope`: one tenant's entries, without sight of the others; and pauses of many, through the API."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from celery_neli import periodic
from celery_neli.exceptions import ConfigurationError, Conflict, NeliError
from celery_neli.periodic import aio
from celery_neli.periodic import editor as editors
from celery_neli.periodic.scoped import Scope
from celery_neli.schedule_topic.rules import PREFIX
from tests.unit.schedulers import make_app
from tests.unit.schedules import FakeStore


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Any:
    store = FakeStore()
    monkeypatch.setattr(editors, "Topic", lambda app: store)
    return make_app(neli_scheduler=None)


@pytest.fixture
def tenant(app: Any) -> Scope:
    periodic.put(app, "tenant-4", "t", 60)
    periodic.put(app, "tenant-43/digest", "t", 60)
    return periodic.scope(app, "tenant-42/")


def test_names_are_given_and_returned_without_the_prefix(app: Any, tenant: Scope) -> None:
    assert tenant.put("digest", "t", 60).name == "digest"
    assert periodic.get(app, "tenant-42/digest") is not None
    assert [each.name for each in tenant.list()] == ["digest"]
    assert tenant.pause("digest").paused
    found = tenant.get("digest")
    assert found is not None
    assert (found.name, found.paused) == ("digest", True)
    tenant.remove("digest")
    assert [*tenant.list()] == []


@pytest.mark.parametrize("name", ["tenant-43/digest", "tenant-4", "../tenant-43/digest"])
def test_no_other_entry_can_be_seen_or_touched(app: Any, tenant: Scope, name: str) -> None:
    assert tenant.get(name) is None
    for change in (tenant.pause, tenant.resume, tenant.remove, tenant.run_now):
        with pytest.raises(NeliError, match="there is no entry"):
            change(name)
    with pytest.raises(NeliError), tenant.batch() as batch:
        batch.remove(name)
    assert {each.name for each in periodic.list(app)} == {"tenant-4", "tenant-43/digest"}


def test_a_batch_writes_within_the_scope(app: Any, tenant: Scope) -> None:
    with tenant.scope("a/").batch() as batch:
        batch.put("one", "t", 60)
        batch.put("two", "t", 60)
    assert [each.name for each in tenant.list(prefix="a/", after="a/one")] == ["a/two"]
    assert periodic.get(app, "tenant-42/a/one") is not None


def test_a_conflict_names_the_entry_as_the_tenant_does(tenant: Scope) -> None:
    tenant.put("e", "t", 60)
    with pytest.raises(Conflict) as caught:
        tenant.put("e", "t", 90, expected="other")
    assert caught.value.names == ("e",)
    assert "tenant-42/" not in str(caught.value)


def test_to_pause_all_of_a_scope_pauses_no_other(app: Any, tenant: Scope) -> None:
    tenant.put("digest", "t", 60)
    assert tenant.pause_where(all=True, note="migration").of == "all"
    held = {each.name: each.paused_by for each in periodic.list(app)}
    assert held == {"tenant-4": None, "tenant-43/digest": None, "tenant-42/digest": "prefix 'tenant-42/'"}
    (made,) = periodic.pauses(app)
    assert (made.of, made.value, made.note) == (PREFIX, "tenant-42/", "migration")
    assert [each.of for each in tenant.pauses()] == ["all"]
    assert len(tenant.resume_where(all=True)) == 1
    assert periodic.pauses(app) == []


@pytest.mark.parametrize("given", [{}, {"tag": "t"}, {"all": True, "prefix": "a"}, {"prefix": ""}])
def test_a_scope_pauses_only_what_is_its_own(app: Any, tenant: Scope, given: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        tenant.pause_where(**given)
    assert periodic.pauses(app) == []


@pytest.mark.parametrize("prefix", ["", " ", "a\nb", 5, None, "x" * 512])
def test_a_prefix_that_is_none_is_refused(app: Any, prefix: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^prefix = .*: give 1 to 511 printable characters$"):
        periodic.scope(app, prefix)


# -- pauses of many, through the API --


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({}, "which entries"),
        ({"all": True, "tag": "a"}, "which entries"),
        ({"all": 1}, "all = 1"),
        ({"tag": ""}, "tag = ''"),
        ({"prefix": "a\0"}, "prefix = "),
        ({"all": True, "until": 5.0}, "until = 5.0"),
        ({"all": True, "note": 7}, "note = 7"),
    ],
)
def test_a_pause_of_many_that_means_nothing_is_refused(app: Any, given: dict[str, Any], line: str) -> None:
    """In one line that names the field, and nothing is stored."""
    with pytest.raises(ConfigurationError, match=f"^{line}[^\n]*$"):
        periodic.pause_where(app, **given)
    assert periodic.pauses(app) == []


def test_a_pause_that_is_made_again_is_changed(app: Any) -> None:
    first = periodic.pause_where(app, tag="night", by="ann")
    again = periodic.pause_where(app, tag="night", until=4e9, note="why", by="bob")
    assert periodic.pauses(app) == [again]
    assert (again.id, again.at, again.by) == (first.id, first.at, "bob")


def test_an_entry_says_which_pause_holds_it(app: Any) -> None:
    """And stays paused when it is resumed by itself."""
    periodic.put(app, "e", "t", 60)
    periodic.pause_where(app, all=True, until=4e9)
    found = periodic.resume(app, "e")
    assert (found.paused, found.until, found.paused_by, found.next) == (True, 4e9, "all entries", None)
    with pytest.raises(NeliError, match="there is no pause of prefix 'e'; those that hold: --all"):
        periodic.resume_where(app, prefix="e")
    periodic.resume_where(app, all=True)
    with pytest.raises(NeliError, match="there is no pause of all entries; no pause of many entries holds"):
        periodic.resume_where(app, all=True)
    found = periodic.get(app, "e")
    assert found is not None
    assert (found.paused, found.paused_by) == (False, None)


def test_the_asynchronous_scope_does_the_same(app: Any, tenant: Scope) -> None:
    async def use() -> list[str]:
        scope = aio.scope(app, tenant.prefix)
        assert (await scope.put("digest", "t", 60)).name == "digest"
        assert (await scope.pause("digest")).paused
        assert not (await scope.resume("digest")).paused
        assert await scope.get("tenant-4") is None
        async with scope.scope("a/").batch() as batch:
            await batch.put("one", "t", 60)
            await batch.put("two", "t", 60)
        await scope.remove("a/two")
        with pytest.raises(NeliError, match="there is no entry"):
            await scope.remove("tenant-43/digest")
        return [each.name async for each in scope.list()]

    assert asyncio.run(use()) == ["a/one", "digest"]
    assert {each.name for each in periodic.list(app, prefix="tenant-42/")} == {"tenant-42/a/one", "tenant-42/digest"}


def test_the_asynchronous_scope_has_every_function_of_the_other() -> None:
    def public(of: type) -> set[str]:
        return {each for each in vars(of) if not each.startswith("_")}

    assert public(Scope) - {"full"} == public(aio.AsyncScope) - {"prefix"}
