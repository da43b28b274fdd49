"""Each page, without Kafka: what it says, what it refuses, and that nothing in it can be misread."""

from __future__ import annotations

import itertools
import re
import time
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from celery_neli.exceptions import ConfigurationError, NeliError
from celery_neli.history.records import RunRecord, SlotRecord
from celery_neli.schedule_topic.codec import Definition, encode_definition
from celery_neli.ui import asgi
from celery_neli.ui.html import FILES
from celery_neli.ui.state import ELECTIONS, HISTORY, Source
from celery_neli.ui.views import query_of
from tests.ui.example import TOKEN, app_of, example, fill_entries, fill_terms, page_of, state_of
from tests.unit import hostile

if TYPE_CHECKING:
    pass

PAGES = ("/", "/schedule", "/entry?name=digest", "/attention")
ORIGIN = {"origin": "http://testserver"}


class Reader(HTMLParser):
    """What a page holds that a test asks for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def words(text: str) -> str:
    """The text of a page, without its elements."""
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())


def sign_in(client: TestClient, user: str = "ana") -> None:
    told = client.post("/sign-in", data={"user": user, "token": TOKEN, "then": "/"}, headers=ORIGIN)
    assert told.status_code == 200


class Changes:
    """Notes what a page changes."""

    def __init__(self, error: Exception | None = None) -> None:
        self.made: list[tuple[str, str, str]] = []
        self._error = error

    def of(self, what: str) -> Any:
        def change(_: Any, name: str, *, by: str) -> None:
            if self._error is not None:
                raise self._error
            self.made.append((what, name, by))

        return change

    @property
    def all(self) -> dict[str, Any]:
        return {what: self.of(what) for what in ("pause", "resume", "run")}


def writable(changes: Changes) -> TestClient:
    state = example()[0]
    client = TestClient(page_of(state, write=True, token=TOKEN, changes=changes.all))
    sign_in(client)
    return client


def form(client: TestClient, path: str = "/entry?name=digest") -> dict[str, str]:
    """The fields of the first form of a page that changes an entry."""
    found = Reader(client.get(path).text)
    fields = [each for each in found.all("input") if each.get("type") == "hidden"]
    return {str(each["name"]): str(each["value"]) for each in fields}


# What is seen


def test_the_overview() -> None:
    """Who leads, in which term, how much of the lease is left, who else is there, and the terms with the gaps."""
    _, page = example()
    text = TestClient(page).get("/").text
    told = words(text)
    assert "2 of 2" in told
    assert re.search(r"beat leader beat-2 9933 \d\d:\d\d:\d\d 3\.\d of 4 s", told)
    assert "beat-3 beat · 10.1.4.13 does not answer" in told
    drawn = next(each for each in Reader(text).all("svg") if each.get("class") == "timeline")
    assert drawn["aria-label"] == "role leader: 4 terms, the last of beat-2; 3 gaps of 4.6 s together"
    assert "4.30 s without a leader" in text
    assert "beat leader 8520 beat-1" in told  # the same as a table


def test_before_anything_was_read_the_overview_claims_nothing() -> None:
    """Whoever opens the page in an outage must not be told that no member ever started."""
    told = words(TestClient(page_of(state_of(app_of()))).get("/").text)
    assert "Still reading who leads" in told
    assert "has started yet" not in told
    assert "Roles led –" in told


def test_a_role_without_a_leader() -> None:
    """The page says so, and why."""
    state = state_of(app_of())
    now = time.time()
    fill_terms(state, now=now)
    from dataclasses import replace

    from celery_neli.timeline import EXPIRED

    beats = state.terms["beat"]["leader"]
    beats[-1] = replace(beats[-1], ended=now - 5, end=EXPIRED)
    told = words(TestClient(page_of(state)).get("/").text)
    assert "1 of 2" in told
    assert "no leader the last leader, beat-2: expired" in told


def test_the_schedule_is_searched_and_paged() -> None:
    """Fifty entries a page; a search finds names and tasks, whatever their case."""
    state = state_of(app_of())
    fill_entries(state, 120, now=time.time(), runs=2)
    client = TestClient(page_of(state))
    first, last = (words(client.get(f"/schedule?page={page}").text) for page in (1, 3))
    assert "1–50 of 121 entries" in first
    assert "101–121 of 121 entries" in last
    assert "121 entries" in words(client.get("/schedule?page=99999").text)
    found = words(client.get("/schedule?q=BACKUP-7&only=all").text)
    assert "1–3 of 3 entries" in found
    assert "backup-7 " in found
    assert "backup-71 " in found
    assert "24 of 24 entries" in words(client.get("/schedule?q=billing.").text)
    assert "No entry matches." in words(client.get("/schedule?q=nothing-of-this").text)
    paused = words(client.get("/schedule?only=paused").text)
    assert "1–11 of 11 entries" in paused
    assert " active " not in paused.partition("Last 50 runs")[2]
    for odd in ("page=-1", "page=x", "page=%00", "only=odd", "q=%ff"):
        assert client.get(f"/schedule?{odd}").status_code == 200


def test_a_strip_says_in_words_what_it_shows() -> None:
    """Fifty runs are one picture with a text alternative."""
    state = state_of(app_of())
    fill_entries(state, 1, now=time.time(), runs=3)
    made: dict[str, Any] = {"entry": "tidy-up", "task": "t", "slot": time.time() + 60, "at": time.time() + 60}
    state.runs.add(SlotRecord(**made, outcome="skipped", member="b", policy="overlap"))
    drawn = Reader(TestClient(page_of(state)).get("/schedule").text).all("svg")
    labels = [str(each["aria-label"]) for each in drawn if each.get("role") == "img"]
    assert "no runs known" in labels
    assert any(re.fullmatch(r"4 runs: .*1 left out.*; the last one was left out", each) for each in labels)


def test_one_entry() -> None:
    """Its definition, the next twenty due times in its zone, its runs, and who changed what."""
    state = state_of(app_of(timezone="Asia/Kolkata"))
    fill_entries(state, 8, now=time.time())
    text = TestClient(page_of(state)).get("/entry?name=sync-stock").text
    told = words(text)
    assert "stock.sync" in told
    assert told.partition("Runs How long")[0].count(" 07:00:00 ") == 20
    assert "in Asia/Kolkata, UTC+0530" in told
    assert "api_token" in told
    assert "abc" not in told
    assert re.search(r"ben \(page\) resumed .* ana@desk added", told)
    assert len(Reader(text).all("tr")) == 51
    plot = next(each for each in Reader(text).all("svg") if each.get("class") == "plot")
    assert str(plot["aria-label"]).startswith("durations of the last runs. 50 runs: ")


def test_what_needs_a_look() -> None:
    """Slots in doubt, and runs that failed or were left out, each with its entry."""
    state = state_of(app_of())
    now = time.time()
    made: dict[str, Any] = {"task": "t", "at": now, "member": "beat-1", "term": 7}
    state.runs.add(SlotRecord(**made, entry="a", slot=now - 1, outcome="in_doubt", policy="send", id="1"))
    state.runs.add(SlotRecord(**made, entry="b", slot=now - 2, outcome="skipped", policy="misfire", count=3))
    state.runs.add(SlotRecord(**made, entry="c", slot=now - 3, outcome="sent", id="3"))
    state.runs.add(
        RunRecord(entry="c", task="t", slot=now - 3, id="3", state="failed", at=now, worker="w", error="KeyError: 'x'")
    )
    told = words(TestClient(page_of(state)).get("/attention").text)
    doubt, _, bad = told.partition("Failed or left out Tasks")
    assert "in doubt: sent again" in doubt
    assert "and 2 before" in bad
    assert "left out by misfire" in bad
    assert "KeyError: &#39;x&#39;" in bad


def test_what_is_not_there() -> None:
    """An unknown entry, and an unknown address, are answered with a page."""
    client = TestClient(example()[1])
    assert "There is no entry of this name" in client.get("/entry?name=nope").text
    assert client.get("/entry").status_code == client.get("/nothing").status_code == 404
    assert client.get("/entry?id=!!").status_code == 404


def test_kafka_is_away() -> None:
    """The page shows what it knows, and since when that is old."""
    state, page = example()
    client = TestClient(page)
    state.start()
    state.start()
    state.sources = {ELECTIONS: Source(time.time() - 2, "Kafka does not answer: refused")}
    assert "What you see is" not in client.get("/").text  # one look that failed
    state.sources = {ELECTIONS: Source(time.time() - 95, "Kafka does not answer: refused")}
    told = words(client.get("/schedule").text)
    assert re.search(r"Kafka does not answer. What you see is from \d\d:\d\d:\d\d , 95 s ago\. +Kafka .* refused", told)
    assert "1–9 of 9 entries" in told
    state.sources = {ELECTIONS: Source(time.time()), HISTORY: Source(None, "there is no history topic x")}
    assert "The run history is not read: there is no history topic x." in words(client.get("/").text)


def test_a_wrong_setting_is_said_in_one_line() -> None:
    """A page whose app cannot be followed answers with the reason."""
    app = app_of()
    app.conf.neli_group = None
    told = TestClient(asgi(app)).get("/")
    assert told.status_code == 500
    assert "neli_group is not set" in told.text


# What cannot be misread


@pytest.mark.parametrize(
    "text", [*hostile.TEXTS, "<script>alert(1)</script>", "\"'><img src=x onerror=y>", "{{ 7*7 }}"]
)
def test_hostile_names_are_shown_and_control_nothing(text: str) -> None:
    """Whatever stands in a record: no page gets an element, a line or a direction of it, and its links work."""
    state = state_of(app_of(beat_schedule={text: {"task": text, "schedule": 5.0}}))
    fill_terms(state, now=time.time(), leader=text)
    state.schedule.add("e", text, hostile.definition(text))
    made: dict[str, Any] = {"entry": text, "task": text, "slot": 5.0, "id": text, "at": time.time()}
    state.runs.add(SlotRecord(**made, outcome="in_doubt", policy=text, member=text, role=text, error=text))
    state.runs.add(RunRecord(**made, state="failed", worker=text, error=text))
    state.sources = {ELECTIONS: Source(1.0, text), HISTORY: Source(1.0, text)}
    client = TestClient(page_of(state))
    for path in ("/", "/schedule", "/attention", f"/entry?{query_of(text)}"):
        told = client.get(path)
        assert told.status_code == 200, path
        assert told.text.replace("\n", "").isprintable(), path
        assert f"\n{hostile.FORGED}" not in told.text
        found = Reader(told.text)
        assert {tag for tag, _ in found.tags}.isdisjoint({"iframe", "object", "style"})
        assert len(found.all("script")) == 1
        assert not [name for _, given in found.tags for name in given if name.startswith("on")]
        assert "x" not in [each.get("src") for each in found.all("img")]


def test_a_name_of_any_kind_has_an_address() -> None:
    """A browser would change a lone surrogate or a control character in an address; such names are encoded."""
    for text in (*hostile.TEXTS, "a/b?c#d&e=f+g", "..", " "):
        state = state_of(app_of())
        state.schedule.add("e", text, encode_definition(Definition(task="t", schedule="PT1M")))
        assert TestClient(page_of(state)).get(f"/entry?{query_of(text)}").status_code == 200


def test_each_answer_has_the_headers_of_security() -> None:
    """Pages, files, errors and refusals; only the page's own styles and scripts run, none within a page."""
    client = TestClient(page_of(example()[0], hosts=("testserver",)))
    for path in (*PAGES, "/static/page.css", "/static/live.js", "/nothing", "/events/x"):
        told = client.get(path)
        policy = told.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert told.headers["x-content-type-options"] == "nosniff"
        assert told.headers["x-frame-options"] == "DENY"
        assert told.headers["referrer-policy"] == "same-origin"
        assert ("no-store" in told.headers["cache-control"]) == (not path.startswith("/static"))
    for path in PAGES:
        found = Reader(client.get(path).text)
        assert not [given for _, given in found.tags if "style" in given]
        assert all(each.get("src") for each in found.all("script"))
        assert not [url for url in re.findall(r'(?:src|href|action)="([^"]*)"', client.get(path).text) if "//" in url]
    refused = client.get("/", headers={"host": "evil.example"})
    assert refused.status_code == 400
    assert "evil.example, only as testserver" in refused.text


@pytest.mark.parametrize("path", PAGES)
def test_pages_can_be_used_without_seeing_them(path: str) -> None:
    """Landmarks, one first heading and none left out, labels of fields, names of pictures and tables, unique ids."""
    found = Reader(TestClient(page_of(example()[0])).get(path).text)
    tags = [tag for tag, _ in found.tags]
    assert tags.count("main") == tags.count("h1") == 1
    assert {"header", "nav", "footer"} <= set(tags)
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert next(each for each in found.all("html"))["lang"] == "en"
    labelled = {each["for"] for each in found.all("label")}
    fields = [each for tag in ("input", "select") for each in found.all(tag) if each.get("type") != "hidden"]
    assert {each["id"] for each in fields} <= labelled
    assert all(each.get("aria-label") or each.get("aria-hidden") for each in found.all("svg"))
    assert tags.count("caption") + sum("aria-label" in each for each in found.all("div")) >= tags.count("table")
    ids = [given["id"] for _, given in found.tags if "id" in given]
    assert len(ids) == len(set(ids))
    assert next(each for each in found.all("a"))["href"] == "#main"
    assert any(each.get("aria-live") == "polite" for each in found.all("p"))


# Changes


@pytest.mark.parametrize("what", ["pause", "resume", "run"])
def test_a_change_is_made_by_the_visitor(what: str) -> None:
    """It carries the name with which the visitor signed in, and leads back to the entry, which says so."""
    changes = Changes()
    client = writable(changes)
    told = client.post("/change", data={**form(client), "what": what}, headers=ORIGIN)
    assert changes.made == [(what, "digest", "ana (page)")]
    assert told.url.path == "/entry"
    assert 'role="status"' in told.text


@pytest.mark.parametrize("fault", ["no form token", "other origin", "no origin", "get", "json", "long", "what", "name"])
def test_a_change_that_did_not_come_from_the_page_is_refused(fault: str) -> None:
    """Whatever is missing or wrong: nothing is changed."""
    changes = Changes()
    client = writable(changes)
    fields = {**form(client), "what": "pause"}
    headers = dict(ORIGIN)
    if fault == "get":
        assert client.get("/change", params=fields, headers=headers).status_code == 405
    elif fault == "json":
        assert client.post("/change", json=fields, headers=headers).status_code == 415
    else:
        if fault == "no form token":
            del fields["csrf"]
        elif fault == "other origin":
            headers = {"origin": "https://evil.example"}
        elif fault == "no origin":
            headers = {}
        elif fault == "long":
            fields["name"] = "x" * 20_000
        elif fault == "what":
            fields["what"] = "remove"
        else:
            del fields["name"]
        expected = {"long": 413, "what": 400, "name": 400}.get(fault, 403)
        assert client.post("/change", data=fields, headers=headers).status_code == expected
    assert changes.made == []


def test_without_a_session_there_is_no_change() -> None:
    """Neither on a page that is read-only nor on one that the visitor did not sign in to."""
    changes = Changes()
    state = example()[0]
    signed = writable(Changes())
    fields = {**form(signed), "what": "pause"}
    for access in ({}, {"write": True, "token": TOKEN}, {"token": TOKEN}):
        client = TestClient(page_of(state, changes=changes.all, **access))
        assert client.post("/change", data=fields, headers=ORIGIN).status_code == 403
    reader = TestClient(page_of(state, token=TOKEN, changes=changes.all))
    sign_in(reader)
    assert "do-pause" not in reader.get("/entry?name=digest").text
    own = {**form(reader), "name": "digest", "what": "pause"}  # of the form that signs out
    assert own["csrf"] != fields["csrf"]
    assert reader.post("/change", data=own, headers=ORIGIN).status_code == 403
    assert changes.made == []


def test_a_change_that_fails_is_told() -> None:
    """In the words of the error."""
    client = writable(Changes(NeliError("Kafka at 127.0.0.1:1 does not answer")))
    told = client.post("/change", data={**form(client), "what": "pause"}, headers=ORIGIN)
    assert told.status_code == 409
    assert "Kafka at 127.0.0.1:1 does not answer" in told.text


def test_signing_in() -> None:
    """Pages lead to it and back; a wrong token, or a name that cannot be noted, is refused; signing out ends it."""
    client = TestClient(page_of(example()[0], write=True, token=TOKEN))
    asked = client.get("/entry?name=digest")
    assert asked.url.path == "/sign-in"
    assert "shop-production" not in asked.text
    for path in ("/", "/schedule", "/attention"):
        assert "beat-2" not in client.get(path).text
    assert client.get("/events").status_code == 403
    then = form(client, "/entry?name=digest")["then"]
    given = {"user": "ana", "token": TOKEN, "then": then}
    assert client.post("/sign-in", data={**given, "token": "no"}, headers=ORIGIN).status_code == 403
    assert client.post("/sign-in", data={**given, "user": "a\x00b"}, headers=ORIGIN).status_code == 403
    assert client.post("/sign-in", data=given, headers={"origin": "https://evil.example"}).status_code == 403
    made = client.post("/sign-in", data=given, headers=ORIGIN, follow_redirects=False)
    cookie = made.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert TOKEN not in cookie
    assert made.headers["location"] == "/entry?name=digest"
    page = client.get("/entry?name=digest")
    assert page.url.path == "/entry"
    out = client.post("/sign-out", data={"csrf": form(client)["csrf"]}, headers=ORIGIN)
    assert out.url.path == "/sign-in"


@pytest.mark.parametrize(
    "then", ["https://evil.example", "//evil.example", "/\\evil.example", "/entry\r\nx: y", "sign-in"]
)
def test_nobody_is_sent_elsewhere_after_signing_in(then: str) -> None:
    """Only pages of this one are gone to."""
    client = TestClient(page_of(example()[0], token=TOKEN))
    made = client.post(
        "/sign-in", data={"user": "ana", "token": TOKEN, "then": then}, headers=ORIGIN, follow_redirects=False
    )
    assert made.headers["location"] == "/"


def test_over_tls_the_session_never_travels_without() -> None:
    """The cookie is marked as secure."""
    client = TestClient(page_of(example()[0], token=TOKEN), base_url="https://testserver")
    made = client.post(
        "/sign-in",
        data={"user": "ana", "token": TOKEN},
        headers={"origin": "https://testserver"},
        follow_redirects=False,
    )
    assert "secure" in made.headers["set-cookie"].lower()


def test_behind_a_proxy_that_names_the_user() -> None:
    """The header decides who changes something; without it the page is read-only."""
    changes = Changes()
    client = TestClient(page_of(example()[0], write=True, user_header="X-User", changes=changes.all))
    assert "do-pause" not in client.get("/entry?name=digest").text
    client.headers["x-user"] = "ben@example.org"
    client.post("/change", data={**form(client), "what": "pause"}, headers=ORIGIN)
    assert changes.made == [("pause", "digest", "ben@example.org (page)")]


# As a part of another application


def test_mounted_under_a_path() -> None:
    """All addresses begin with it, also those to which a visitor is sent, and the cookie is for it alone."""
    changes = Changes()
    page = page_of(example()[0], write=True, token=TOKEN, changes=changes.all)
    client = TestClient(Starlette(routes=[Mount("/ops/neli", page)]))
    assert client.get("/ops/neli/").url.path == "/ops/neli/sign-in"
    made = client.post(
        "/ops/neli/sign-in", data={"user": "ana", "token": TOKEN, "then": "/schedule"}, headers=ORIGIN,
        follow_redirects=False,
    )  # fmt: skip
    assert made.headers["location"] == "/ops/neli/schedule"
    assert "path=/ops/neli" in made.headers["set-cookie"].lower()
    for path in PAGES:
        told = client.get(f"/ops/neli{path}")
        assert told.status_code == 200
        urls = re.findall(r'(?:src|href|action|data-events)="([^"#]*)"', told.text)
        assert urls
        assert all(url.startswith("/ops/neli/") for url in urls if url)
        files = [url for url in urls if "/static/" in url]
        assert all(client.get(url).status_code == 200 for url in files)
    client.post("/ops/neli/change", data={**form(client, "/ops/neli/entry?name=digest"), "what": "run"}, headers=ORIGIN)
    assert changes.made == [("run", "digest", "ana (page)")]


def test_asgi_refuses_what_is_unfit() -> None:
    """Writing without a token, and a time that is none."""
    with pytest.raises(ConfigurationError, match="give a token"):
        asgi(app_of(), write=True)
    with pytest.raises(ConfigurationError, match="days = 0"):
        asgi(app_of(), days=0)


def luminance(colour: str) -> float:
    parts = colour[1:] if len(colour) == 7 else "".join(2 * each for each in colour[1:])
    linear = [int(parts[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    red, green, blue = (each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in linear)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("place", [0, 1], ids=["light", "dark"])
def test_text_and_marks_stand_out(place: int) -> None:
    """By the ratios of WCAG 2 (AA): 4.5 for text, on the page, on cards and on badges; 3 for the marks of pictures."""
    style = (FILES / "static" / "page.css").read_text()
    found = dict(re.findall(r"--([\w-]+): (#\w+);", re.findall(r":root \{(.*?)\}", style, re.DOTALL)[place]))
    for text in ("text", "soft", "link", "bad"):
        for back in ("back", "card"):
            assert contrast(found[text], found[back]) >= 4.5, (text, back)
    for kind in ("ok", "sent", "run", "bad", "skip", "doubt"):
        assert contrast(found[kind], found[f"{kind}-soft"]) >= 4.5, kind
        assert contrast(found[kind], found["card"]) >= 3, kind
    for note in ("run-soft", "bad-soft", "ok-soft"):
        assert contrast(found["text"], found[note]) >= 4.5, note
        assert contrast(found["soft"], found[note]) >= 4.5, note
    for member in range(6):
        assert contrast(found[f"m{member}"], found["card"]) >= 3, member
    button = "#ffffff" if place == 0 else "#0c140b"
    assert contrast(button, found["m0"]) >= 4.5
