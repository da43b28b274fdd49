"""The page: who leads, what ran, what did not, in a browser (extra `ui`). `celery neli ui` serves it.

`state` follows the topics of an app in the background and keeps what is shown, in bounded memory; `views` make of it
what a page says, `drawing` its pictures; `access` decides who may change what; `page` answers requests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_neli.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery import Celery

    from celery_neli.ui.page import Page

__all__ = ["asgi"]


def asgi(
    app: Celery,
    *,
    write: bool = False,
    token: str | None = None,
    user_header: str | None = None,
    hosts: Sequence[str] = (),
    days: float = 7.0,
) -> Page:
    """Return the page as an ASGI application, to be served or mounted in another one, under any path.

    It begins to follow the topics with its first request, on threads of its own, and ends with the `lifespan` of the
    server; an application that mounts it and does not pass `lifespan` on calls its `close()`.

    Args:
        app: The Celery app.
        write: Whether entries may be paused, resumed and run from the page; needs `token`, `user_header` or both.
        token: A secret of 8 characters or more, which visitors have to give before they see anything.
        user_header: The header in which a reverse proxy names the user. The proxy must remove this header from what
            clients send: who can reach the page without the proxy is whom the header says. With a `token`, too, the
            proxy has to send it as `Authorization: Bearer TOKEN`.
        hosts: The names by which the page may be asked for (the header `Host`), without a port; none: any.
        days: For how many days back the run history is read.

    Raises:
        ConfigurationError: The extra is not installed, or an argument is unfit.
    """
    try:
        from celery_neli.ui.page import Page
    except ImportError as exc:
        raise ConfigurationError(f'the page needs the extra ui: pip install "celery-neli[ui]" ({exc})') from None
    from celery_neli.ui import sources
    from celery_neli.ui.access import Access
    from celery_neli.ui.state import State

    access = Access(write=write, token=token, user_header=user_header, hosts=tuple(hosts))
    if not 0 < days <= 3650:
        raise ConfigurationError(f"days = {days!r}: give a number of days above 0")
    return Page(app, State(app, days=days, followers=sources.of), access)
