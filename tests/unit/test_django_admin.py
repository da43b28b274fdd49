"""The admin of the runtime schedule in Django: what it shows, what it changes, and who may do that."""

from __future__ import annotations

import json
import re
import threading
from datetime import datetime, timedelta, timezone
from html import unescape
from io import StringIO
from typing import TYPE_CHECKING, Any

import pytest

from celery_neli import periodic
from celery_neli.exceptions import Conflict, NeliError
from celery_neli.schedule.policies import OWN_OPTIONS
from tests.unit.schedulers import make_app

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery

    from celery_neli.embedded import EmbeddedKafka

pytestmark = pytest.mark.usefixtures("rows")
LIST = "/admin/celery_neli/entry/"
#: Each page of an entry `e` that changes something, with the permission that it needs.
CHANGES = {
    f"{LIST}add/": "add",
    f"{LIST}e/change/": "change",
    f"{LIST}e/delete/": "delete",
    f"{LIST}e/pause/": "pause",
    f"{LIST}e/resume/": "pause",
    f"{LIST}e/run/": "run",
}
FORM = {"name": "e", "task": "shop.tidy", "schedule": "5m", "args": "[]", "kwargs": "{}", "options": "{}"}


@pytest.fixture
def rows(django_tables: None) -> Iterator[None]:
    """A database that forgets."""
    from django.db import transaction

    with transaction.atomic():
        yield
        transaction.set_rollback(True)


@pytest.fixture
def app(embedded_kafka: EmbeddedKafka, monkeypatch: pytest.MonkeyPatch) -> Celery:
    """The app that the admin shows."""
    made = make_app(
        neli_group="g",
        neli_kafka=embedded_kafka.bootstrap_servers,
        neli_scheduler=None,
        beat_schedule={"static": {"task": "shop.tidy", "schedule": 60.0}},
    )

    @made.task(name="shop.tidy", shared=False)
    def tidy(*args: Any, **kwargs: Any) -> None:
        """Nothing."""

    from django.conf import settings

    monkeypatch.setattr(settings, "NELI_APP", made, raising=False)
    return made


def user(*rights: str, name: str = "ana") -> Any:
    """A client that is signed in, with these permissions."""
    from django.contrib.auth.models import Permission, User
    from django.test import Client

    found = User.objects.create_user(name, password="secret", is_staff=True)
    names = [f"{each}_entry" for each in rights]
    found.user_permissions.set(Permission.objects.filter(codename__in=names))
    client = Client()
    client.force_login(found)
    return client


@pytest.fixture
def boss(rows: None) -> Any:
    """A client that may do everything."""
    return user("view", "add", "change", "delete", "pause", "run")


def text(answer: Any) -> str:
    assert answer.status_code == 200
    return unescape(answer.content.decode())


def told(answer: Any) -> list[str]:
    """The messages of a page."""
    return [str(each) for each in answer.context["messages"]]


def names(answer: Any) -> list[str]:
    return [each["raw"] for each in answer.context["rows"]]


def field(page: str, name: str) -> str:
    found = re.search(rf'name="{name}" value="([^"]*)"', page)
    return found[1] if found else ""


# -- no table --


def test_it_has_no_table_and_no_migration() -> None:
    """`migrate` makes its permissions and no table, `makemigrations` finds nothing to do, `dumpdata` works."""
    from django.contrib.auth.models import Permission
    from django.core.management import call_command
    from django.db import connection

    assert not [each for each in connection.introspection.table_names() if "neli" in each]
    found = Permission.objects.filter(content_type__app_label="celery_neli").values_list("codename", flat=True)
    assert sorted(found) == [f"{each}_entry" for each in ("add", "change", "delete", "pause", "run", "view")]
    call_command("makemigrations", check_changes=True, dry_run=True, verbosity=0)
    call_command("check")
    out = StringIO()
    call_command("dumpdata", "celery_neli", stdout=out)
    assert json.loads(out.getvalue()) == []


# -- which app --


def test_the_app_is_that_of_the_setting_or_the_current_one(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """In any thread; without one, one line says what to do."""
    from django.conf import settings

    from celery_neli.django import celery_app as module
    from celery_neli.exceptions import ConfigurationError

    assert module.celery_app() is app
    monkeypatch.setattr(settings, "NELI_APP", "tests.unit.nowhere:app")
    with pytest.raises(ConfigurationError, match=r"NELI_APP = 'tests.unit.nowhere:app': .*such as NELI_APP"):
        module.celery_app()
    monkeypatch.setattr(settings, "NELI_APP", None)
    app.set_current()
    module.remember()
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(module.celery_app()))
    thread.start()
    thread.join()
    assert found == [app]
    monkeypatch.setattr(module, "_remembered", None)
    monkeypatch.setattr(module, "app_or_default", lambda: None)
    with pytest.raises(ConfigurationError, match=r"no Celery app.*NELI_APP"):
        module.celery_app()


# -- the list --


def test_the_list_shows_filters_and_pages(app: Celery, boss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name, by a prefix, by a part of a name, by state, source and owner; page by page, forwards and back."""
    from celery_neli.django import entries

    for name in ("b/1", "b/2", "b/3", "c"):
        periodic.put(app, name, "shop.tidy", "5m", owner="a.yaml" if name == "c" else None)
    periodic.pause(app, "b/2", until=datetime.now(timezone.utc) + timedelta(hours=1), note="too loud", by="bob")
    page = boss.get(LIST)
    assert names(page) == ["b/1", "b/2", "b/3", "c", "static"]
    shown = text(page)
    assert re.search(r"paused</span>\s+<small>until 2\d{3}-.*? by bob: too loud", shown)
    assert "every 5 min" in shown
    for query, found in {
        "text=b/": ["b/1", "b/2", "b/3"],
        "text=/": [],
        "text=/&contains=1": ["b/1", "b/2", "b/3"],
        "state=paused": ["b/2"],
        "state=active&text=b": ["b/1", "b/3"],
        "source=beat_schedule": ["static"],
        "owner=a.yaml": ["c"],
        "owner=nothing": [],
    }.items():
        assert names(boss.get(f"{LIST}?{query}")) == found, query
    monkeypatch.setattr(entries.page, "__defaults__", (2, 100))
    first = boss.get(f"{LIST}?source=runtime")
    assert (names(first), first.context["earlier"]) == (["b/1", "b/2"], None)
    second = boss.get(LIST + first.context["later"])
    assert (names(second), second.context["later"]) == (["b/3", "c"], None)
    assert names(boss.get(LIST + second.context["earlier"])) == ["b/1", "b/2"]


def test_the_list_is_filtered_by_tag(app: Celery, boss: Any) -> None:
    """A tag of an entry leads there."""
    periodic.put(app, "a", "shop.tidy", "5m")
    boss.post(f"{LIST}add/", {**FORM, "neli_tags": " x, y z "})
    page = boss.get(f"{LIST}?tag=y+z")
    assert (names(page), page.context["rows"][0]["tags"]) == (["e"], ["x", "y z"])
    assert 'href="?tag=y%20z"' in page.content.decode()


def test_a_page_makes_no_more_entries_than_it_must(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that it shows and one, forwards and back, whatever the number of the others; by a part of the name, too."""
    from celery_neli.django import entries
    from celery_neli.periodic import listing

    with periodic.batch(app) as batch:
        for number in range(300):
            batch.put(f"{number:03}", "t", "5m")
    made: list[str] = []
    real = listing.view_of

    def view_of(editor: Any, name: str) -> periodic.Periodic:
        made.append(name)
        return real(editor, name)

    monkeypatch.setattr(listing, "view_of", view_of)
    found = entries.page(app, entries.Query(), 100)
    assert (len(found.entries), found.later, found.earlier, len(made)) == (100, "099", None, 101)
    made.clear()
    found = entries.page(app, entries.Query(before="250"), 100)
    assert ([found.entries[0].name, found.entries[-1].name], found.earlier, found.later) == (
        ["150", "249"],
        "150",
        "249",
    )
    assert len(made) == 101
    made.clear()
    found = entries.page(app, entries.Query(text="99", contains=True), 100)
    assert [each.name for each in found.entries] == made == ["099", "199", "299"]
    made.clear()
    assert (
        [each.name for each in entries.page(app, entries.Query(source="beat_schedule")).entries] == made == ["static"]
    )


def test_a_filter_that_few_match_looks_at_some_entries_for_each_page(
    app: Celery, boss: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are, a page takes seconds, and says where it goes on."""
    from celery_neli.django import entries

    with periodic.batch(app) as batch:
        for number in range(9):
            batch.put(f"{number}", "t", "5m")
    periodic.pause(app, "7")
    monkeypatch.setattr(entries.page, "__defaults__", (100, 4))
    page = boss.get(f"{LIST}?state=paused")
    assert (names(page), page.context["looked"], page.context["earlier"]) == ([], 4, None)
    assert "None of these 4 entries is like that; there are more." in text(page)
    page = boss.get(LIST + page.context["later"])
    assert (names(page), page.context["looked"]) == (["7"], 4)
    page = boss.get(LIST + page.context["later"])
    assert (names(page), page.context["looked"], page.context["later"]) == ([], None, None)
    page = boss.get(LIST + page.context["earlier"])
    assert (names(page), page.context["looked"]) == (["7"], 4)
    page = boss.get(LIST + page.context["earlier"])
    assert (names(page), page.context["looked"], page.context["earlier"]) == ([], None, None)


def test_names_and_texts_of_others_are_escaped(app: Celery, boss: Any) -> None:
    """In HTML, and control characters first; a name that no address can hold has no link."""
    app.conf.beat_schedule["\ud800\x1b[2J<i>"] = {"task": "shop.tidy", "schedule": 60.0}
    app.conf.beat_schedule["."] = {"task": "shop.tidy", "schedule": 60.0}
    hostile = "<script>alert(1)</script>/../?&#%\"'"
    periodic.put(app, hostile, "<b>task</b>", "5m", by="<u>eve</u>", args=["</textarea><b>"])
    shown = boss.get(LIST).content.decode()
    assert "<script>alert" not in shown
    assert "<i>" not in shown
    assert "\x1b" not in shown
    assert r"\ud800\x1b[2J&lt;i&gt;" in shown
    last = boss.get(f"{LIST}?after=t")
    assert names(last) == [None]
    assert "static" in names(boss.get(LIST + last.context["earlier"]))
    link = re.search(r'href="([^"]*)">&lt;script', shown)
    assert link is not None
    entry = boss.get(unescape(link[1])).content.decode()
    assert "</textarea><b>" not in entry
    assert "<script>alert" not in entry
    history = boss.get(unescape(link[1]).replace("/change/", "/history/")).content.decode()
    assert "&lt;u&gt;eve" in history
    assert "<u>eve" not in history


# -- add and edit --


def test_an_entry_is_added(app: Celery, boss: Any) -> None:
    """Each field says what it says; the author of the change is the user, and the admin's log has it, too."""
    from django.contrib.admin.models import ADDITION, LogEntry

    given = {
        **FORM, "name": "a/b", "schedule": "*/5 * * * *", "args": '["x", 1]', "kwargs": '{"k": null}',
        "options": '{"shadow": "s"}', "queue": "7", "priority": "3", "expires": "2030-01-01T00:00:00Z",
        "neli_misfire": "skip", "neli_misfire_grace": "1.5", "note": "for the auditors",
    }  # fmt: skip
    answer = boss.post(f"{LIST}add/", given, follow=True)
    assert told(answer) == ["The entry a/b was added."]
    found = periodic.get(app, "a/b")
    assert found is not None
    assert (found.task, found.schedule, found.args, found.kwargs) == ("shop.tidy", "*/5 * * * *", ("x", 1), {"k": None})
    assert found.options == {
        "queue": "7", "priority": 3, "expires": "2030-01-01T00:00:00Z", "shadow": "s", "neli_misfire": "skip",
        "neli_misfire_grace": 1.5,
    }  # fmt: skip
    change = found.changes[-1]
    assert (change.by, change.what, change.note) == ("ana (django)", "added", "for the auditors")
    logged = LogEntry.objects.get()
    assert (logged.user.username, logged.object_id, logged.action_flag) == ("ana", "a/b", ADDITION)
    assert logged.get_admin_url() == f"{LIST}a_2Fb/change/"


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("name", " ", "name = ' '"),
        ("name", "\x1b", "name = "),
        ("task", "a\tb", "task = "),
        ("schedule", "often", "schedule = 'often'"),
        ("schedule", "0.2s", "neli_least_interval"),
        ("schedule", "2001-01-01T00:00:00Z", "never comes"),
        ("args", "[1", "no JSON"),
        ("args", "{}", "JSON array"),
        ("args", "[NaN]", "args"),
        ("args", '["' + "x" * 300_000 + '"]', "bytes as JSON"),
        ("kwargs", "[]", "JSON object"),
        ("options", '{"bar": 1}', "no option bar"),
        ("options", '{"eta": 1}', "eta cannot be set"),
        ("options", '{"retry_policy": 1}', "retry_policy"),
        ("queue", "q" * 300, "queue = "),
        ("priority", "high", "priority = 'high'"),
        ("expires", "soon", "expires = 'soon'"),
        ("neli_misfire", "often", "neli_misfire = 'often'"),
        ("neli_expires", "-3", "neli_expires = -3"),
        ("neli_overlap", "skip", "result backend"),
        ("neli_timezone", "Nowhere", "there is no such time zone"),
        ("neli_jitter", "600", "neli_jitter = 600: it is longer than"),
        ("neli_start", "soon", "neli_start = 'soon'"),
        ("neli_max_runs", "0", "neli_max_runs = 0"),
        ("neli_calendar", "nowhere", "neli_calendar = 'nowhere'"),
        ("neli_tags", "a, a", "neli_tags = ['a', 'a']"),
        ("neli_pause_on_failure", "often", "neli_pause_on_failure = 'often'"),
        ("neli_overdue", "[1]", "neli_overdue = '[1]'"),
        ("note", "n" * 501, "500"),
    ],
)
def test_a_mistake_stands_at_its_field(app: Celery, boss: Any, field: str, value: str, says: str) -> None:
    """And nothing is stored."""
    given = {**FORM, field: value}
    page = boss.post(f"{LIST}add/", given)
    form = page.context["form"]
    assert list(form.errors) == [field], form.errors
    assert says in " ".join(form.errors[field])
    row = re.search(rf'<div class="form-row errors field-{field}">\s*<ul class="errorlist"', text(page))
    assert row is not None
    assert [each.name for each in periodic.list(app)] == ["static"]


def test_several_mistakes_are_shown_together(app: Celery, boss: Any) -> None:
    """A user mends them in one go."""
    given = {**FORM, "schedule": "often", "args": "x", "neli_expires": "-1", "priority": "high", "task": ""}
    page = boss.post(f"{LIST}add/", given)
    assert set(page.context["form"].errors) == {"schedule", "args", "neli_expires", "priority", "task"}


def test_an_option_stands_in_one_place(app: Celery, boss: Any) -> None:
    """In its field, or with the other options."""
    page = boss.post(f"{LIST}add/", {**FORM, "options": '{"queue": "a"}', "queue": "b"})
    assert list(page.context["form"].errors) == ["queue"]


def test_every_own_option_has_a_field() -> None:
    """One that is new in the tables has one, too."""
    from celery_neli.django.options import OPTIONS

    assert OPTIONS.keys() >= OWN_OPTIONS


def test_saving_what_was_not_touched_changes_nothing(app: Celery, boss: Any) -> None:
    """Although a form holds text, and an entry may hold datetimes."""
    at = datetime(2030, 1, 1, tzinfo=timezone.utc)
    put = periodic.put(
        app, "e", "shop.tidy", "5m", args=[at, "ä\n\"'"], kwargs={"a": [1.5, None, {"b": at}]},
        options={"queue": "1", "expires": at, "headers": {"h": 1}, "neli_misfire": "fire_all", "ignore_result": True},
    )  # fmt: skip
    page = boss.get(f"{LIST}e/change/").context["form"]
    given = {name: page[name].value() for name in page.fields if page[name].value() is not None}
    answer = boss.post(f"{LIST}e/change/", given, follow=True)
    assert told(answer) == ["The entry e was changed."]
    assert periodic.get(app, "e") == put


def test_an_entry_is_changed(app: Celery, boss: Any) -> None:
    """Its fields, and nothing else: it stays paused."""
    periodic.put(app, "e", "shop.tidy", "5m", args=[1], options={"queue": "q"})
    periodic.pause(app, "e")
    page = boss.get(f"{LIST}e/change/")
    assert page.context["form"]["queue"].value() == "q"
    given = {**FORM, "schedule": "7m", "args": "[2]", "expected": field(text(page), "expected"), "_continue": "1"}
    answer = boss.post(f"{LIST}e/change/", given)
    assert answer["Location"] == f"{LIST}e/change/"
    found = periodic.get(app, "e")
    assert found is not None
    assert (found.schedule, found.args, found.options, found.paused) == ("PT7M", (2,), {}, True)
    assert found.changes[-1].by == "ana (django)"


def test_a_change_of_another_is_never_overwritten_in_silence(app: Celery, boss: Any) -> None:
    """The form says who changed what in between and what is stored now; sent again, it replaces that."""
    periodic.put(app, "e", "shop.tidy", "5m", by="ana")
    page = text(boss.get(f"{LIST}e/change/"))
    given = {**FORM, "schedule": "9m", "expected": field(page, "expected"), "seen": field(page, "seen")}
    periodic.put(app, "e", "shop.tidy", "7m", options={"queue": "q"}, by="bob")
    refused = boss.post(f"{LIST}e/change/", given)
    said = " ".join(refused.context["form"].non_field_errors())
    assert "bob changed schedule PT5M -> PT7M, options" in said
    assert "ana" not in said
    assert refused.context["form"].stored == {"schedule": "PT7M", "queue": "q"}
    assert "stored now: <code>PT7M</code>" in text(refused)
    found = periodic.get(app, "e")
    assert found is not None
    assert found.schedule == "PT7M"
    given.update({name: field(text(refused), name) for name in ("expected", "seen")})
    assert boss.post(f"{LIST}e/change/", given).status_code == 302
    found = periodic.get(app, "e")
    assert found is not None
    assert (found.schedule, found.options) == ("PT9M", {})


def test_an_entry_that_was_removed_meanwhile_is_not_made_again_in_silence(app: Celery, boss: Any) -> None:
    """The form says so; sent again by a user who may add entries, it adds the entry."""
    periodic.put(app, "e", "shop.tidy", "5m")
    page = text(boss.get(f"{LIST}e/change/"))
    periodic.remove(app, "e")
    given = {**FORM, "expected": field(page, "expected")}
    refused = boss.post(f"{LIST}e/change/", given)
    assert "removed" in " ".join(refused.context["form"].non_field_errors())
    assert periodic.get(app, "e") is None
    given["expected"] = field(text(refused), "expected")
    editor = user("view", "change", name="only-edits")
    assert editor.post(f"{LIST}e/change/", given).status_code == 403
    assert boss.post(f"{LIST}e/change/", given).status_code == 302
    assert periodic.get(app, "e") is not None


def test_adding_replaces_nothing(app: Celery, boss: Any) -> None:
    """A name that is taken is a mistake in the field of the name."""
    periodic.put(app, "e", "shop.tidy", "5m")
    page = boss.post(f"{LIST}add/", {**FORM, "schedule": "7m"})
    assert list(page.context["form"].errors) == ["name"]
    page = boss.post(f"{LIST}add/", {**FORM, "name": "static"})
    assert list(page.context["form"].errors) == ["name"]
    found = periodic.get(app, "e")
    assert found is not None
    assert found.schedule == "PT5M"


def test_the_next_slots_are_shown_before_an_entry_is_stored(app: Celery, boss: Any) -> None:
    """While the schedule is typed, and by a button without scripts."""
    shown = boss.get(f"{LIST}preview/", {"schedule": "0 12 * * *"}).json()
    assert len(shown["slots"]) == 5
    assert all("12:00:00" in each["slot"] for each in shown["slots"])
    given = {"schedule": "0 12 * * *", "neli_timezone": "Asia/Tokyo", "neli_start": "2031-01-01T00:00:00Z"}
    shown = boss.get(f"{LIST}preview/", given).json()
    assert shown["slots"][0]["slot"] == "Wed 2031-01-01 12:00:00 JST"
    assert (
        "neli_timezone = 'Nowhere'"
        in boss.get(f"{LIST}preview/", {**given, "neli_timezone": "Nowhere"}).json()["error"]
    )
    assert "schedule = 'often'" in boss.get(f"{LIST}preview/", {"schedule": "often"}).json()["error"]
    page = boss.post(f"{LIST}add/", {**FORM, "schedule": "0 12 * * *", "_preview": "1"})
    assert len(page.context["preview"]["slots"]) == 5
    assert periodic.get(app, "e") is None


def test_an_entry_of_beat_schedule_can_only_be_looked_at_paused_and_run(app: Celery, boss: Any) -> None:
    """There is no form, and none is taken."""
    page = text(boss.get(f"{LIST}static/change/"))
    assert "id_schedule" not in page
    assert "do-pause" in page
    assert "do-run" in page
    assert boss.post(f"{LIST}static/change/", FORM).status_code == 403
    assert told(boss.post(f"{LIST}static/pause/", follow=True)) == ["The entry static was paused."]
    assert "beat_schedule" in told(boss.post(f"{LIST}static/delete/", follow=True))[0]


def test_an_entry_that_is_left_out_shows_why_and_no_more(app: Celery, boss: Any) -> None:
    """No beat runs it, so nothing can be done with it."""
    app.conf.beat_schedule["bad"] = {"task": "shop.tidy", "schedule": "often"}
    assert names(boss.get(f"{LIST}?state=problem")) == ["bad"]
    page = text(boss.get(f"{LIST}bad/change/"))
    assert "cannot be shown: schedule = 'often'" in page
    for each in ("do-pause", "do-run", "deletelink", "id_schedule"):
        assert each not in page


# -- what is done to entries --


def test_pause_resume_and_run(app: Celery, boss: Any) -> None:
    """Each by POST; the pause has an end and a reason; the admin's log has each."""
    from django.contrib.admin.models import LogEntry

    periodic.put(app, "e", "shop.tidy", "5m")
    until = (datetime.now(timezone.utc) + timedelta(days=1)).replace(second=0, microsecond=0)
    answer = boss.post(f"{LIST}e/pause/", {"until": f"{until:%Y-%m-%dT%H:%M}", "note": "too loud"}, follow=True)
    assert told(answer) == [f"The entry e was paused until {until:%Y-%m-%d %H:%M} UTC."]
    found = periodic.get(app, "e")
    assert found is not None
    assert (found.paused, found.until, found.note) == (True, until.timestamp(), "too loud")
    assert found.changes[-1].by == "ana (django)"
    assert told(boss.post(f"{LIST}e/resume/", follow=True)) == ["The entry e was resumed."]
    assert "was sent to run now, as task " in told(boss.post(f"{LIST}e/run/", follow=True))[0]
    found = periodic.get(app, "e")
    assert found is not None
    assert not found.paused
    assert LogEntry.objects.count() == 3
    assert "until = 'soon'" in told(boss.post(f"{LIST}e/pause/", {"until": "soon"}, follow=True))[0]
    assert "no entry" in told(boss.post(f"{LIST}nope/pause/", follow=True))[0]


def test_a_pause_of_many_is_told_apart() -> None:
    """It cannot be ended at one entry."""
    from celery_neli.django.shown import row

    held = row(periodic.Periodic(name="e", task="t", schedule="PT5M", paused_by="tag 'x'"), "admin")
    assert (held["state"], held["paused"]["own"], held["paused"]["many"]) == ("paused", False, "tag 'x'")


def test_many_are_changed_at_once(app: Celery, boss: Any) -> None:
    """What is refused is told, and stops no other; removing is asked first."""
    from django.contrib.admin.models import LogEntry

    for name in ("a", "b", "c"):
        periodic.put(app, name, "shop.tidy", "5m")
    chosen = {"_selected_action": ["a", "static", "nope"]}
    answer = boss.post(LIST, {"action": "pause", **chosen}, follow=True)
    assert told(answer)[0] == "2 entries were paused."
    assert "nope" in told(answer)[1]
    assert [each.name for each in periodic.list(app) if each.paused] == ["a", "static"]
    assert told(boss.post(LIST, {"action": "resume", **chosen}, follow=True))[0] == "2 entries were resumed."
    assert told(boss.post(LIST, {"action": "run_now", **chosen}, follow=True))[0] == "2 entries were sent to run now."
    asked = text(boss.post(LIST, {"action": "remove", "_selected_action": ["a", "b", "static"]}))
    assert "Yes, remove them" in asked
    assert periodic.get(app, "a") is not None
    given = {"action": "remove", "confirmed": "1", "_selected_action": ["a", "b", "static"]}
    answer = boss.post(LIST, given, follow=True)
    assert told(answer)[0] == "2 entries were removed."
    assert "beat_schedule" in told(answer)[1]
    assert [each.name for each in periodic.list(app)] == ["c", "static"]
    assert LogEntry.objects.count() == 8
    assert told(boss.post(LIST, {"action": "pause"}, follow=True)) == ["Choose the entries to change first."]
    assert told(boss.post(LIST, {"action": "explode", **chosen}, follow=True)) == ["Choose an action."]


def test_an_entry_is_removed_if_it_is_the_one_that_was_shown(app: Celery, boss: Any) -> None:
    """One that was changed in between stays."""
    periodic.put(app, "e", "shop.tidy", "5m")
    page = text(boss.get(f"{LIST}e/delete/"))
    periodic.put(app, "e", "shop.tidy", "7m", by="bob")
    answer = boss.post(f"{LIST}e/delete/", {"expected": field(page, "expected")}, follow=True)
    assert "bob changed schedule PT5M -> PT7M" in told(answer)[0]
    page = text(boss.get(f"{LIST}e/delete/"))
    answer = boss.post(f"{LIST}e/delete/", {"expected": field(page, "expected")}, follow=True)
    assert told(answer) == ["The entry e was removed."]
    assert periodic.get(app, "e") is None


# -- who may do what --


def test_who_may_only_look_changes_nothing(app: Celery) -> None:
    """By whatever POST."""
    before = periodic.put(app, "e", "shop.tidy", "5m")
    client = user("view")
    assert text(client.get(LIST))
    page = text(client.get(f"{LIST}e/change/"))
    for forbidden in ("do-pause", "do-run", "id_schedule", "deletelink", "addlink"):
        assert forbidden not in page
    for address in CHANGES:
        assert client.post(address, {**FORM, "expected": before.version}).status_code == 403, address
    for action in ("pause", "resume", "run_now", "remove"):
        given = {"action": action, "confirmed": "1", "_selected_action": ["e"]}
        assert client.post(LIST, given).status_code == 403, action
    assert [periodic.get(app, "e"), len(list(periodic.list(app)))] == [before, 2]


@pytest.mark.parametrize("right", ["add", "change", "delete", "pause", "run"])
def test_each_permission_permits_what_it_names(app: Celery, right: str) -> None:
    """And nothing else."""
    client = user("view", right)
    for address, needed in CHANGES.items():
        found = periodic.get(app, "e") or periodic.put(app, "e", "shop.tidy", "5m")
        status = client.post(address, {**FORM, "expected": found.version}).status_code
        assert (status != 403) == (needed == right), address
    for action, needed in {"pause": "pause", "run_now": "run", "remove": "delete"}.items():
        periodic.get(app, "e") or periodic.put(app, "e", "shop.tidy", "5m")
        given = {"action": action, "confirmed": "1", "_selected_action": ["e"]}
        assert (client.post(LIST, given).status_code != 403) == (needed == right), action


def test_secrets_are_shown_to_those_who_may_change_them(app: Celery, boss: Any) -> None:
    """As on the page of `celery neli ui`."""
    periodic.put(app, "e", "shop.tidy", "5m", kwargs={"deep": [{"password": "hunter2"}], "city": "Ulm"})
    page = text(user("view", name="looks").get(f"{LIST}e/change/"))
    assert "hunter2" not in page
    assert "Ulm" in page
    assert "hunter2" in text(boss.get(f"{LIST}e/change/"))


def test_who_may_not_look_sees_nothing(app: Celery) -> None:
    """Staff without permissions gets 403, and others the page to sign in."""
    from django.test import Client

    periodic.put(app, "e", "shop.tidy", "5m")
    client = user()
    for address in (
        "",
        "e/change/",
        "e/history/",
        "preview/?schedule=5m",
        *(each.removeprefix(LIST) for each in CHANGES),
    ):
        if "pause" not in address and "resume" not in address and "run" not in address:
            assert client.get(LIST + address).status_code == 403, address
        assert "/login/" in Client().get(LIST + address)["Location"]


def test_no_get_changes_anything(app: Celery, boss: Any) -> None:
    """A link or a picture cannot do anything in a user's name, and neither can a form of another site."""
    from django.test import Client

    before = periodic.put(app, "e", "shop.tidy", "5m")
    for address in CHANGES:
        assert boss.get(address).status_code in (200, 405)
        assert boss.head(address).status_code in (200, 405)
    strict = Client(enforce_csrf_checks=True)
    strict.cookies = boss.cookies
    for address in (*CHANGES, LIST):
        given = {**FORM, "action": "pause", "_selected_action": "e", "expected": before.version}
        assert strict.post(address, given).status_code == 403, address
    assert periodic.get(app, "e") == before


# -- the history, and what is away --


def test_the_history_shows_changes_runs_and_what_was_done_here(
    app: Celery, boss: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an entry that was removed, too."""
    periodic.put(app, "e", "shop.tidy", "5m", by="bob")
    boss.post(f"{LIST}e/pause/")
    run = periodic.Run(
        entry="e", slot=1.8e9, id="i", task="shop.tidy", outcome="sent", at=1.8e9, state="failed", runtime=1.25,
        worker="w1", error="ValueError: <no>",
    )  # fmt: skip
    monkeypatch.setattr(periodic, "runs", lambda app, name, limit: [run])
    page = boss.get(f"{LIST}e/history/")
    shown = text(page)
    for each in (
        "2027-01-15 08:00:00",
        "sent",
        "failed",
        "1.250 s",
        "w1",
        "ValueError: <no>",
        "bob",
        "added",
        "paused",
    ):
        assert each in shown
    assert "<no>" not in page.content.decode()
    periodic.remove(app, "e")
    assert "ValueError" in text(boss.get(f"{LIST}e/history/"))
    monkeypatch.undo()


def test_a_missing_history_is_a_message(app: Celery, boss: Any) -> None:
    """No beat has recorded anything here."""
    periodic.put(app, "e", "shop.tidy", "5m")
    page = boss.get(f"{LIST}e/history/")
    assert "The runs cannot be shown: " in text(page)


def test_an_entry_that_is_not_there_is_said_on_the_list(app: Celery, boss: Any) -> None:
    """As of any object in Django's admin."""
    for what in ("change", "history", "delete"):
        answer = boss.get(f"{LIST}nope/{what}/", follow=True)
        assert (names(answer), told(answer)) == (["static"], ["There is no entry 'nope'."])


def test_kafka_away_is_a_message_on_the_page(app: Celery, boss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On every page, and for every change; what was typed stays."""

    def away(*args: Any, **kwargs: Any) -> Any:
        raise NeliError("no answer from <Kafka>")

    for each in ("get", "put", "pause", "resume", "remove", "run_now", "runs", "changes", "batch"):
        monkeypatch.setattr(periodic, each, away, raising=False)
    monkeypatch.setattr("celery_neli.django.entries.listed", away)
    for address in (LIST, *(each for each in CHANGES if "add" not in each), f"{LIST}e/history/"):
        page = boss.get(address)
        if page.status_code != 405:
            assert "no answer from <Kafka>" in text(page), address
    page = boss.post(f"{LIST}add/", FORM)
    assert page.context["form"].non_field_errors() == ["no answer from <Kafka>"]
    assert page.context["form"]["task"].value() == "shop.tidy"
    for address in CHANGES:
        page = boss.post(address, {**FORM, "expected": "1"})
        said = text(page) if page.status_code == 200 else " ".join(map(str, _messages(page)))
        assert "no answer from <Kafka>" in said, address
    for action in ("pause", "resume", "run_now", "remove"):
        page = boss.post(LIST, {"action": action, "confirmed": "1", "_selected_action": ["e"]})
        assert "no answer from <Kafka>" in " ".join(map(str, _messages(page))), action


def _messages(answer: Any) -> list[Any]:
    from django.contrib.messages import get_messages

    return list(get_messages(answer.wsgi_request))


def test_without_a_celery_app_each_page_says_so(boss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line, with what to do."""
    from django.conf import settings

    monkeypatch.setattr(settings, "NELI_APP", "nowhere.at.all", raising=False)
    for address in (LIST, f"{LIST}add/", f"{LIST}e/change/"):
        assert "NELI_APP = 'nowhere.at.all'" in text(boss.get(address))


def test_a_batch_that_somebody_else_was_quicker_than(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries that were changed in between are named and not counted as done."""
    from contextlib import contextmanager
    from types import SimpleNamespace

    from celery_neli.django.entries import change_many

    @contextmanager
    def batch(app: Any, *, by: str) -> Iterator[Any]:
        yield SimpleNamespace(pause=lambda name: None)
        raise Conflict("b was changed by bob", ("b",))

    monkeypatch.setattr(periodic, "batch", batch)
    done = change_many(None, ["a", "b"], "pause", by="ana")
    assert (done.names, done.mistakes) == (["a"], ["b was changed by bob"])
