"""`celery neli ui`: what it refuses before it listens."""

from __future__ import annotations

import builtins
import socket
from typing import Any

import pytest
from click.testing import CliRunner, Result

from celery_neli.ui import asgi
from celery_neli.ui.command import is_loopback, ui
from tests.ui.example import app_of


class _Obj:
    def __init__(self) -> None:
        self.app = app_of()


def run(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(ui, arguments, obj=_Obj(), env=environment)


def test_writing_where_others_can_reach_it_needs_a_token() -> None:
    """One line says so; a proxy's header is not enough, since who reaches the port can send it."""
    for more in ((), ("--user-header", "X-User")):
        told = run("--write", "--host", "0.0.0.0", *more)
        assert told.exit_code == 1
        assert told.output == (
            "Error: --write on 0.0.0.0, which others can reach: give a token (NELI_UI_TOKEN), or listen on 127.0.0.1\n"
        )


def test_a_token_that_is_too_short_is_refused() -> None:
    """Also one of the environment."""
    assert "the token of the page is too short" in run(NELI_UI_TOKEN="abc").output


def test_a_port_that_is_taken() -> None:
    """One line names it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = run("--port", str(port))
    assert told.exit_code == 1
    assert told.output.startswith(f"Error: cannot listen on 127.0.0.1:{port}: ")


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("10.0.0.1", False), ("page.example", False)],
)  # fmt: skip
def test_loopback(host: str, local: bool) -> None:
    """What only this machine reaches."""
    assert is_loopback(host) is local


def test_without_the_extra_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command and the function name the extra."""
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith(("starlette", "jinja2", "uvicorn")) or name == "celery_neli.ui.page":
            raise ImportError("No module named 'starlette'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    told = run()
    assert told.exit_code == 1
    assert told.output == (
        "Error: the page needs the extra ui: pip install \"celery-neli[ui]\" (No module named 'starlette')\n"
    )
    with pytest.raises(Exception, match="needs the extra ui"):
        asgi(app_of())
