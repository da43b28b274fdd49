"""Sinks that speak HTTP: pings of healthchecks, and the webhook (extra `http`: urllib3)."""

from __future__ import annotations

import json
import re
import time
from importlib import import_module
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from celery_neli.alarms.reports import BAD, BEGUN, GOOD, OVERDUE, Report
from celery_neli.alarms.sink import Sink, SinkError
from celery_neli.exceptions import ConfigurationError

TIMEOUT: Final = 5.0  # seconds for one request
TRIES: Final = 3
PAUSE: Final = 0.5  # seconds before the second try; twice that before the third
MOST_BODY: Final = 1_000  # characters of a ping's text

_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_NO_SLUG = re.compile(r"[^a-z0-9_-]+")
#: The end of the path of a ping. Healthchecks takes a start, a success and a failure of one run by its `rid`.
_PINGS = {BEGUN: "/start", GOOD: "", BAD: "/fail", OVERDUE: "/fail"}


def healthchecks(url: str) -> Sink:
    """Return the sink that pings `url`, in which `{slug}` stands for the entry. Raises `ConfigurationError`."""
    client = _Client("neli_healthchecks", url)

    def deliver(report: Report) -> None:
        address = ping_url(url, report.entry, _PINGS[report.status], report.id)
        client.send("POST", address, report.text[:MOST_BODY].encode(), "text/plain; charset=utf-8")

    return Sink("healthchecks", deliver, frozenset(_PINGS))


def webhook(url: str, group: str) -> Sink:
    """Return the sink that posts each alarm to `url` as JSON. Raises `ConfigurationError`."""
    client = _Client("neli_webhook", url)

    def deliver(report: Report) -> None:
        if report.alarm is not None:
            body = json.dumps({"group": group, **report.alarm.as_dict()}).encode()
            client.send("POST", url, body, "application/json")

    return Sink("webhook", deliver, frozenset({OVERDUE}))


def slug(name: str) -> str:
    """Return an entry's name as a slug: of a-z, 0-9, - and _."""
    return _NO_SLUG.sub("-", name.lower()).strip("-") or "entry"


def ping_url(url: str, entry: str, end: str, run_id: str) -> str:
    """Return the address of a ping; what `url` has behind a question mark stays."""
    parts = urlsplit(url.replace("{slug}", slug(entry)))
    query = "&".join(filter(None, (parts.query, f"rid={run_id}")))
    return urlunsplit(parts._replace(path=parts.path.rstrip("/") + end, query=query))


class _Client:
    """Requests to one host, each tried a few times. For one thread."""

    def __init__(self, setting: str, url: str) -> None:
        try:
            self._urllib3: Any = import_module("urllib3")
        except ImportError:
            raise ConfigurationError(f'{setting} needs urllib3: pip install "celery-neli[http]"') from None
        self._host = urlsplit(url).hostname or ""
        self._pool: Any = None

    def send(self, method: str, url: str, body: bytes, kind: str) -> None:
        """Send it; raise `SinkError` if it was not taken. Blocks for some seconds at most."""
        if self._pool is None:
            timeout = self._urllib3.Timeout(total=TIMEOUT)
            self._pool = self._urllib3.PoolManager(timeout=timeout, retries=False)
        headers = {"Content-Type": kind, "User-Agent": "celery-neli"}
        why: str | None = ""
        for number in range(TRIES):
            if number:
                time.sleep(PAUSE * number)
            why = self._try(method, url, body, headers)
            if why is None:
                return
        raise SinkError(f"host={self._host} {why}")

    def _try(self, method: str, url: str, body: bytes, headers: dict[str, str]) -> str | None:
        """Return None if it was taken, else why not; raise `SinkError` if it would not be the next time, either."""
        try:
            status = self._pool.request(method, url, body=body, headers=headers, redirect=False).status
        except self._urllib3.exceptions.HTTPError as exc:  # its text may hold the address, and with it a secret
            return f"error={type(exc).__name__}"
        if status in _AGAIN:
            return f"status={status}"
        if not 200 <= status < 300:
            raise SinkError(f"host={self._host} status={status}")
        return None
