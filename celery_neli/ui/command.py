"""`celery neli ui`: serve the page. What it needs is imported when it runs."""

from __future__ import annotations

import ipaddress
import secrets
import socket
from types import FrameType
from typing import Any, Final

import click

from celery_neli.exceptions import ConfigurationError, NeliError
from celery_neli.periodic.cli import Command
from celery_neli.printable import say

LOCAL: Final = ("localhost", "127.0.0.1", "::1")
GRACE: Final = 1  # seconds that open streams have when the command ends


@click.command(name="ui", cls=Command)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8765, show_default=True, help="The port; 0: any.")
@click.option("--write", is_flag=True, help="Let visitors pause, resume and run entries.")
@click.option(
    "--token",
    envvar="NELI_UI_TOKEN",
    show_envvar=True,
    help="What visitors have to give. Use the variable: other users of this machine see options.",
)
@click.option("--user-header", help="The header in which a reverse proxy names the user; the proxy must strip it.")
@click.option("--allow-host", multiple=True, help="A name by which the page may be asked for; repeat it for more.")
@click.option("--root-path", default="", help="The path under which a reverse proxy serves the page, such as /neli.")
@click.option(
    "--days",
    type=click.FloatRange(0, 3650, min_open=True),
    default=7.0,
    show_default=True,
    help="How far back the run history is read.",
)
@click.pass_context
def ui(ctx: click.Context, /, **options: Any) -> None:
    """Serve a page that shows who leads, what ran and what did not, until you interrupt it."""
    app = ctx.obj.app
    app.loader.import_default_modules()
    serve(app, **options)


def serve(
    app: Any, *, host: str, port: int, write: bool, token: str | None, user_header: str | None,
    allow_host: tuple[str, ...], root_path: str, days: float,
) -> None:  # fmt: skip
    """Serve the page until a signal ends it. Raises `NeliError`."""
    from celery_neli.ui import asgi

    local = is_loopback(host)
    if write and token is None and not local:
        raise ConfigurationError(
            f"--write on {host}, which others can reach: give a token (NELI_UI_TOKEN), or listen on 127.0.0.1"
        )
    made = write and token is None and user_header is None
    if made:
        token = secrets.token_urlsafe(18)
    hosts = (*allow_host, *dict.fromkeys((host, *LOCAL))) if local else allow_host
    page = asgi(app, write=write, token=token, user_header=user_header, hosts=hosts, days=days)
    try:
        import uvicorn
    except ImportError as exc:
        raise ConfigurationError(f'celery neli ui needs the extra ui: pip install "celery-neli[ui]" ({exc})') from None
    with _listening(host, port) as listener:
        address, bound = listener.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        say(f"the page is at http://{shown}:{bound}{root_path}/  (Ctrl-C ends it)")
        if made:
            say(f"token for this run: {token}")
        if not local and token is None:
            say(f"note: whoever reaches {host}:{bound} can read this page; give a token (NELI_UI_TOKEN)", err=True)
        config = uvicorn.Config(
            page, log_level="warning", root_path=root_path.rstrip("/"), server_header=False,
            timeout_graceful_shutdown=GRACE, access_log=False,
        )  # fmt: skip

        class Server(uvicorn.Server):
            def handle_exit(self, sig: int, frame: FrameType | None) -> None:
                page.ending = True  # or it would wait for the open streams
                super().handle_exit(sig, frame)

        try:
            Server(config).run(sockets=[listener])
        except KeyboardInterrupt:  # uvicorn raises it again when all has ended
            pass


def is_loopback(host: str) -> bool:
    """Return True if only this machine reaches a server that listens on this address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as exc:
        raise NeliError(f"cannot listen on {host}:{port}: {exc.strerror or exc}") from None
