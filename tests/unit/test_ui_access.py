"""Who may see and change what on the page."""

from __future__ import annotations

from typing import Any

import pytest

from celery_neli.exceptions import ConfigurationError
from celery_neli.ui.access import COOKIE, SESSION, Access, Visitor, is_user, same_origin

TOKEN = "correct horse"
HOST = {"host": "page.example:8765"}


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def signed_in(access: Access, user: str = "ana") -> Visitor:
    return access.visitor({}, {COOKIE: access.sign_in(user)})


def test_without_write_nobody_changes_anything() -> None:
    """Read-only is the default, for visitors with the token, too."""
    assert Access().visitor({}, {}) == Visitor(may_see=True)
    found = signed_in(Access(token=TOKEN))
    assert (found.may_see, found.may_write, found.user) == (True, False, "ana")


def test_a_token_guards_all_pages() -> None:
    """Without a session nothing is seen; with one, changes are allowed if the page writes."""
    access = Access(write=True, token=TOKEN)
    assert not access.visitor({}, {}).may_see
    found = signed_in(access)
    assert (found.may_see, found.may_write, found.user) == (True, True, "ana")
    assert access.is_token(TOKEN)
    assert not access.is_token(TOKEN + " ")
    assert not access.is_token("\ud800")
    assert not Access().is_token("")


def test_a_session_is_valid_in_every_process_with_the_token_and_ends() -> None:
    """It is signed with the token, and lasts twelve hours."""
    clock = Clock()
    access = Access(write=True, token=TOKEN, clock=clock)
    cookie = access.sign_in("größer")
    other = Access(write=True, token=TOKEN, clock=clock)
    assert other.visitor({}, {COOKIE: cookie}).user == "größer"
    assert not Access(write=True, token="another one").visitor({}, {COOKIE: cookie}).may_see
    clock.now += SESSION - 1
    assert other.visitor({}, {COOKIE: cookie}).may_see
    clock.now += 2
    assert not other.visitor({}, {COOKIE: cookie}).may_see


@pytest.mark.parametrize("forge", ["body", "signature", "none", "long", "odd"])
def test_a_forged_session_is_none(forge: str) -> None:
    """Neither a changed body nor a changed signature passes, and nothing of it is decoded."""
    access = Access(write=True, token=TOKEN)
    cookie = access.sign_in("ana")
    body, _, signature = cookie.partition(".")
    forged = {
        "body": f"{access.sign_in('eve').partition('.')[0]}.{signature}",
        "signature": f"{body}.{'0' * len(signature)}",
        "none": body,
        "long": "x" * 100_000,
        "odd": "é\ud800.é",
    }
    assert not access.visitor({}, {COOKIE: forged[forge]}).may_see


def test_a_form_counts_for_its_session_only() -> None:
    """With another session's token, with none, or from another origin, a change is refused."""
    access = Access(write=True, token=TOKEN)
    ana, eve = signed_in(access), signed_in(access, "eve")
    here = {**HOST, "origin": "http://page.example:8765"}
    assert access.came_from_here(ana, here, ana.csrf)
    assert not access.came_from_here(ana, here, eve.csrf)
    assert not access.came_from_here(ana, here, "")
    assert not access.came_from_here(ana, {**HOST, "origin": "http://evil.example"}, ana.csrf)
    assert not access.came_from_here(Visitor(may_see=True), here, "")


@pytest.mark.parametrize(
    ("headers", "same"),
    [
        ({"origin": "http://page.example:8765"}, True),
        ({"origin": "https://page.example:8765"}, True),  # a proxy speaks TLS
        ({"origin": "http://page.example"}, False),
        ({"origin": "null"}, False),
        ({"origin": "http://page.example:8765.evil.example"}, False),
        ({"origin": ""}, False),
        ({"origin": "http://["}, False),
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "same-site"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({}, False),
    ],
)
def test_same_origin(headers: dict[str, str], same: bool) -> None:
    """A browser says where a form came from; without a word of it, it is refused."""
    assert same_origin({**HOST, **headers}) is same


def test_the_user_of_a_proxy() -> None:
    """The header names who changes something; without a name that can be noted, the page is read-only."""
    access = Access(write=True, user_header="X-Forwarded-User")
    found = access.visitor({"x-forwarded-user": "ana@example.org"}, {})
    assert (found.may_write, found.user) == (True, "ana@example.org")
    again = access.visitor({"x-forwarded-user": "ana@example.org"}, {COOKIE: found.cookie})
    assert (again.cookie, again.csrf) == ("", found.csrf)
    other = access.visitor({"x-forwarded-user": "eve"}, {COOKIE: found.cookie})
    assert other.csrf != found.csrf
    for name in ("", " ", "a\nb", "x" * 500):
        assert not access.visitor({"x-forwarded-user": name}, {}).may_write
    assert not access.visitor({}, {COOKIE: found.cookie}).may_write


def test_a_proxy_with_a_token() -> None:
    """Who reaches the page without the proxy does not know the token that the proxy sends."""
    access = Access(write=True, user_header="X-User", token=TOKEN)
    user = {"x-user": "ana"}
    assert not access.visitor(user, {}).may_see
    assert not access.visitor({**user, "authorization": "Bearer wrong"}, {}).may_see
    assert not access.visitor({**user, "authorization": f"Basic {TOKEN}"}, {}).may_see
    assert access.visitor({**user, "authorization": f"Bearer {TOKEN}"}, {}).may_write


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("localhost:1", True),
        ("LOCALHOST", True),
        ("[::1]:80", True),
        ("evil.example", False),
        ("", False),
        ("[", False),
    ],
)
def test_the_names_of_the_page(host: str, known: bool) -> None:
    """A page of another name that leads here cannot read what a visitor may see."""
    assert Access(hosts=("localhost", "::1")).is_host(host) is known
    assert Access().is_host("anything.example")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"write": True}, "give a token, or the user_header"),
        ({"token": "short"}, "8 characters or more"),
        ({"user_header": "X User"}, "such as X-Forwarded-User"),
    ],
)
def test_unfit_access(given: dict[str, Any], says: str) -> None:
    """What would let everybody in is refused, with what to give."""
    with pytest.raises(ConfigurationError, match=says):
        Access(**given)
    assert TOKEN not in repr(Access(token=TOKEN))


@pytest.mark.parametrize(
    ("name", "fit"), [("ana", True), ("", False), ("\t", False), ("a\x1bb", False), ("é" * 151, False)]
)
def test_who_may_be_noted(name: str, fit: bool) -> None:
    """A name is one printable line."""
    assert is_user(name) is fit
