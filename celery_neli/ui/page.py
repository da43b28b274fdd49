"""The page as an ASGI application: its addresses, what it refuses, and the stream of news."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from celery.beat import SchedulingError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from celery_neli import periodic
from celery_neli.exceptions import NeliError
from celery_neli.logs import escaping
from celery_neli.printable import printable
from celery_neli.ui import views
from celery_neli.ui.access import COOKIE, HEADERS, SESSION, Access, Visitor, is_user, same_origin
from celery_neli.ui.html import FILES, render
from celery_neli.ui.state import LEADER, News, State

MOST_FORM: Final = 16_384  # bytes of a form
MOST_STREAMS: Final = 100  # visitors that are told of news at a time
BEAT: Final = 15.0  # seconds between two signs of life in the stream
STREAM: Final = 120.0  # seconds after which a stream ends, and a browser asks for the next one
CALM: Final = 2.0  # seconds between two news that runs or entries changed
LOOK: Final = 0.2  # seconds between two looks for news
DAY: Final = 86_400  # seconds that browsers keep a file, whose address changes with what it holds
WRONG_TOKEN: Final = 0.5  # seconds that the answer to a wrong token takes

logger = escaping(logging.getLogger("celery_neli.ui"))

Change = Callable[..., Any]  # called with the app, the name of an entry, and `by`
CHANGES: Mapping[str, Change] = {"pause": periodic.pause, "resume": periodic.resume, "run": periodic.run_now}
_DONE: Final = {
    "pause": "The entry is paused: its slots pass until you resume it.",
    "resume": "The entry runs again: its next slot is the first one after now.",
    "run": "The task was sent. It runs for no slot, so the history does not show it.",
}


class Page:
    """The page of one app. See `celery_neli.ui.asgi`."""

    def __init__(self, app: Any, state: State, access: Access, *, changes: Mapping[str, Change] = CHANGES) -> None:
        self._celery, self._state, self._access, self._changes = app, state, access, changes
        self._streams = 0
        self.ending = False  # streams are to end soon; may be set by a signal handler
        routes = [
            Route("/", self._overview),
            Route("/schedule", self._schedule),
            Route("/entry", self._entry),
            Route("/attention", self._attention),
            Route("/events", self._events),
            Route("/sign-in", self._sign_in, methods=["GET", "POST"]),
            Route("/sign-out", self._sign_out, methods=["POST"]),
            Route("/change", self._change, methods=["POST"]),
            Mount("/static", StaticFiles(directory=FILES / "static")),
        ]
        self._app = Starlette(routes=routes, lifespan=self._lifespan, exception_handlers={HTTPException: self._failed})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http":
            try:
                self._state.start()
            except NeliError as exc:
                await PlainTextResponse(printable(str(exc), 2_000), 500)(scope, receive, send)
                return
            await _guarded(self._app, self._access, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def close(self) -> None:
        """Stop following; waits for a second or so. A server that knows `lifespan` does it by itself."""
        self._state.stop()

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await run_in_threadpool(self.close)

    # Pages

    async def _overview(self, request: Request) -> Response:
        window = request.query_params.get("window", views.DEFAULT_WINDOW)
        return await self._page(request, "overview.html", views.overview, window)

    async def _schedule(self, request: Request) -> Response:
        query = request.query_params
        number = query.get("page", "1")
        page = int(number) if number.isascii() and number.isdigit() and len(number) < 7 else 1
        return await self._page(
            request, "schedule.html", views.schedule, query.get("q", "")[:200], query.get("only", "all"), page
        )

    async def _entry(self, request: Request) -> Response:
        name = views.name_in(request.query_params)
        done = _DONE.get(request.query_params.get("done", ""), "")
        return await self._page(request, "entry.html", views.entry, name or "", done=done)

    async def _attention(self, request: Request) -> Response:
        return await self._page(request, "attention.html", views.attention)

    async def _page(
        self, request: Request, template: str, view: Callable[..., Any], *values: Any, **more: Any
    ) -> Response:
        visitor = self._visitor(request)
        if not visitor.may_see:
            return self._refuse(request)
        found = await run_in_threadpool(view, self._state, *values)
        if found is None:
            raise HTTPException(404, "There is no entry of this name, or none that was read yet.")
        return await run_in_threadpool(self._rendered, request, template, visitor, {**found, **more})

    # Changes

    async def _change(self, request: Request) -> Response:
        visitor = self._visitor(request)
        form = await _form(request)
        if not visitor.may_write:
            raise HTTPException(403, "This page is read-only for you.")
        if not self._access.came_from_here(visitor, request.headers, form.get("csrf", "")):
            raise HTTPException(403, "This change did not come from this page: load the page again, and retry.")
        what = form.get("what", "")
        name, change = views.name_in(form), self._changes.get(what)
        if name is None or change is None:
            raise HTTPException(400, "There is nothing to do.")
        try:
            await run_in_threadpool(change, self._celery, name, by=f"{visitor.user} (page)")
        except (NeliError, SchedulingError) as exc:
            raise HTTPException(409, f"Nothing is sure to have changed: {exc}") from None
        return _see(request, f"/entry?{views.query_of(name, done=what)}")

    async def _sign_in(self, request: Request) -> Response:
        access = self._access
        if not access.signs_in:
            return _see(request, "/")
        then, wrong = _inside(request.query_params.get("then", "/")), ""
        if request.method == "POST":
            form = await _form(request)
            then = _inside(form.get("then", "/"))
            if not same_origin(request.headers):
                raise HTTPException(403, "This did not come from this page.")
            user = form.get("user", "").strip()
            if not access.is_token(form.get("token", "")):
                wrong = "This is not the token."
                logger.warning("the page refused a token client=%s", request.client.host if request.client else "?")
                await asyncio.sleep(WRONG_TOKEN)
            elif not is_user(user):
                wrong = "Give your name, in up to 150 printable characters: it is noted with each change."
            else:
                answer = _see(request, then)
                self._set_session(request, answer, access.sign_in(user))
                return answer
        status = 403 if wrong else 200
        return self._rendered(request, "sign_in.html", Visitor(may_see=False), {"then": then, "wrong": wrong}, status)

    async def _sign_out(self, request: Request) -> Response:
        visitor, form = self._visitor(request), await _form(request)
        if not self._access.came_from_here(visitor, request.headers, form.get("csrf", "")):
            raise HTTPException(403, "This did not come from this page.")
        answer = _see(request, "/")
        answer.delete_cookie(COOKIE, path=_path(request), httponly=True, samesite="strict")
        return answer

    # News

    async def _events(self, request: Request) -> Response:
        if not self._visitor(request).may_see:
            raise HTTPException(403, "Sign in first.")
        if self._streams >= MOST_STREAMS:
            raise HTTPException(503, "Too many visitors are told of news: load the page again to see them.")
        return StreamingResponse(self._told(), media_type="text/event-stream")

    async def _told(self) -> AsyncIterator[str]:
        """Yield server-sent events: `change` when the page should be loaded again, with what to say aloud."""
        state, loop = self._state, asyncio.get_running_loop()
        self._streams += 1
        try:
            told, told_at, alive_at = state.news, loop.time(), loop.time()
            yield "retry: 2000\n\n"
            ends = loop.time() + STREAM
            while not (state.stopping or self.ending) and loop.time() < ends:
                await asyncio.sleep(LOOK)
                news, now = state.news, loop.time()
                state.seen = state.clock()
                urgent = news.counts[LEADER] != told.counts[LEADER] or news.number != told.number
                if urgent or (news.counts != told.counts and now - told_at >= CALM):
                    yield _event(told, news)
                    told, told_at, alive_at = news, now, now
                elif now - alive_at >= BEAT:
                    yield ": alive\n\n"
                    alive_at = now
        finally:
            self._streams -= 1

    # Parts

    def _visitor(self, request: Request) -> Visitor:
        return self._access.visitor(request.headers, request.cookies)

    def _rendered(
        self, request: Request, template: str, visitor: Visitor, values: Mapping[str, Any], status: int = 200
    ) -> Response:
        common = views.common(self._state) if visitor.may_see else {}
        here = request.url.path.removeprefix(request.scope.get("root_path", "")) or "/"
        query = f"?{request.url.query}" if request.url.query else ""
        more = {"visitor": visitor, "access": self._access, "root": request.scope.get("root_path", ""), "here": here}
        text = render(template, {**common, **more, "again": here + query, **values}, self._celery.timezone)
        answer = Response(text, status, media_type="text/html", headers={"cache-control": "no-store"})
        if visitor.cookie:
            self._set_session(request, answer, visitor.cookie)
        return answer

    def _set_session(self, request: Request, answer: Response, value: str) -> None:
        answer.set_cookie(
            COOKIE, value, max_age=int(SESSION), path=_path(request), httponly=True, samesite="strict",
            secure=request.url.scheme == "https",
        )  # fmt: skip

    def _refuse(self, request: Request) -> Response:
        if not self._access.signs_in:
            raise HTTPException(403, "The proxy did not send the token of this page.")
        here = request.url.path.removeprefix(request.scope.get("root_path", ""))
        query = f"?{request.url.query}" if request.url.query else ""
        return _see(request, "/sign-in?" + urlencode({"then": here + query}))

    async def _failed(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        visitor = self._visitor(request)
        return self._rendered(
            request, "failed.html", visitor, {"status": error.status_code, "why": error.detail}, error.status_code
        )


def _event(told: News, news: News) -> str:
    said = [each.text for each in news.announced if each.number > told.number]
    kinds = [kind for kind, count in news.counts.items() if count != told.counts[kind]]
    return f"event: change\ndata: {json.dumps({'kinds': kinds, 'say': '. '.join(said)})}\n\n"


async def _form(request: Request) -> dict[str, str]:
    """Return the fields of a form."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise HTTPException(415, "This is not a form.")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_FORM:
            raise HTTPException(413, "This form is too long.")
    try:
        return dict(parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=20, errors="strict"))
    except ValueError:
        raise HTTPException(400, "This form cannot be read.") from None


def _path(request: Request) -> str:
    return request.scope.get("root_path", "") or "/"


def _see(request: Request, path: str) -> RedirectResponse:
    return RedirectResponse(request.scope.get("root_path", "") + path, 303)


def _inside(path: str) -> str:
    """Return the path if it is one of this page, else the overview's: nobody is sent elsewhere after signing in."""
    known = path.partition("?")[0] in ("/", "/schedule", "/entry", "/attention")
    return path if known and path.isprintable() and "\\" not in path else "/"


async def _guarded(app: ASGIApp, access: Access, scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse what is asked for by a stranger's name, and put the headers of security on every answer."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            kept = "/static/" in scope["path"] and message["status"] in (200, 304)
            headers.setdefault("cache-control", f"max-age={DAY}" if kept else "no-store")
        await send(message)

    host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
    if access.is_host(host):
        await app(scope, receive, sent)
        return
    known = ", ".join(access.hosts)
    why = f"This page may not be asked for as {printable(host, 100)}, only as {known}; --allow-host adds a name."
    await PlainTextResponse(why, 400)(scope, receive, sent)
