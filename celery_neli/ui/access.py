"""Who may see and change what: the token, sessions, a proxy's user header, and that a change came from the page itself.

Pure, apart from the clock. A session is a signed cookie, so that it survives a restart and needs no memory.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from celery_neli.exceptions import ConfigurationError

COOKIE: Final = "neli_session"
SESSION: Final = 12 * 3600.0  # seconds that a session lasts
SHORTEST_TOKEN: Final = 8
MOST_USER: Final = 150  # characters of a user's name; `by` of a change has room for it
LONGEST_COOKIE: Final = 2_000

_UNFIT: Final = "give the name of a header, such as X-Forwarded-User"

#: Of every answer. Styles and scripts come from the page's own files only.
HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Not no-referrer: browsers would send the Origin of a form as null.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Visitor:
    """Who asks. `cookie` is a session to be set, if any; `csrf` stands in each form."""

    may_see: bool
    may_write: bool = False
    user: str = ""
    csrf: str = ""
    cookie: str = ""


@dataclass(frozen=True, kw_only=True)
class Access:
    """The rules of one page. Raises `ConfigurationError` if they contradict each other."""

    write: bool = False
    token: str | None = field(default=None, repr=False)
    user_header: str | None = None
    hosts: tuple[str, ...] = ()
    clock: Callable[[], float] = time.time
    _key: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        if self.token is not None and len(self.token) < SHORTEST_TOKEN:
            raise ConfigurationError(f"the token of the page is too short: give {SHORTEST_TOKEN} characters or more")
        header = self.user_header
        if header is not None and not (header.isascii() and header.replace("-", "").isalnum()):
            raise ConfigurationError(f"user_header = {header!r}: {_UNFIT}")
        if self.write and self.token is None and header is None:
            raise ConfigurationError("write = True: give a token, or the user_header that a reverse proxy sets, too")
        secret = secrets.token_bytes(32) if self.token is None else self.token.encode("utf-8", "surrogatepass")
        object.__setattr__(self, "_key", hmac.digest(secret, b"celery-neli ui session", hashlib.sha256))

    @property
    def signs_in(self) -> bool:
        """Return True if visitors give the token themselves."""
        return self.token is not None and self.user_header is None

    def is_token(self, given: str) -> bool:
        """Return True if this is the token, compared in constant time."""
        wanted = (self.token or "").encode("utf-8", "surrogatepass")
        return self.token is not None and hmac.compare_digest(given.encode("utf-8", "surrogatepass"), wanted)

    def is_host(self, host: str) -> bool:
        """Return True if the page may be asked for by this name (a `Host` header): a stranger's page could otherwise
        let its own name lead here, and read what a visitor of it may see.
        """
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return not self.hosts or name in self.hosts

    def sign_in(self, user: str) -> str:
        """Return the cookie of a new session."""
        told = {"n": secrets.token_urlsafe(12), "u": user, "x": self.clock() + SESSION}
        body = base64.urlsafe_b64encode(json.dumps(told).encode()).decode()
        return f"{body}.{self._sign('session', body)}"

    def visitor(self, headers: Mapping[str, str], cookies: Mapping[str, str]) -> Visitor:
        """Return who asks, by the names of headers in lower case."""
        session = self._session(cookies.get(COOKIE, ""))
        if self.user_header is not None:
            return self._behind_proxy(headers, session)
        if self.token is None:
            return Visitor(may_see=True)
        if session is None:
            return Visitor(may_see=False)
        return Visitor(may_see=True, may_write=self.write, user=session["u"], csrf=self._sign("form", session["n"]))

    def came_from_here(self, visitor: Visitor, headers: Mapping[str, str], csrf: str) -> bool:
        """Return True if a form that is sent is one of this page, for this session."""
        right = hmac.compare_digest(csrf.encode("utf-8", "surrogatepass"), visitor.csrf.encode())
        return bool(visitor.csrf) and right and same_origin(headers)

    def _behind_proxy(self, headers: Mapping[str, str], session: Mapping[str, Any] | None) -> Visitor:
        if self.token is not None:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not self.is_token(given.strip()):
                return Visitor(may_see=False)
        user = headers.get((self.user_header or "").lower(), "").strip()
        if not is_user(user):
            return Visitor(may_see=True)
        cookie = "" if session is not None and session["u"] == user else self.sign_in(user)
        session = self._session(cookie) if cookie else session
        assert session is not None
        return Visitor(
            may_see=True, may_write=self.write, user=user, csrf=self._sign("form", session["n"]), cookie=cookie
        )

    def _session(self, cookie: str) -> Mapping[str, Any] | None:
        body, _, signature = cookie[:LONGEST_COOKIE].partition(".")
        right = self._sign("session", body).encode()
        if not body or not hmac.compare_digest(signature.encode("utf-8", "surrogatepass"), right):
            return None
        told: Mapping[str, Any] = json.loads(base64.urlsafe_b64decode(body))  # we wrote it
        return told if told["x"] > self.clock() else None

    def _sign(self, purpose: str, text: str) -> str:
        return hmac.new(self._key, f"{purpose}:{text}".encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def is_user(name: str) -> bool:
    """Return True if a change may be noted as made by this name."""
    return bool(name.strip()) and len(name) <= MOST_USER and name.isprintable()


def same_origin(headers: Mapping[str, str]) -> bool:
    """Return True if a browser says that a request was made by a page of the same host. Without a word of it, False."""
    host = headers.get("host", "")
    origin = headers.get("origin")
    if origin is not None:
        return bool(host) and origin.partition("://")[2].lower() == host.lower()
    return headers.get("sec-fetch-site") == "same-origin"
