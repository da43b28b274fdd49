"""Serves the project on a free port, each request on a thread of its own, to the user `ana` with the password `ana`."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

if TYPE_CHECKING:
    from collections.abc import Iterator


class Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - named so by http.server
        """Say nothing of requests."""


class Threads(ThreadingMixIn, WSGIServer):
    daemon_threads = True


def make() -> WSGIServer:
    """The server of the project, with its tables and its user."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.ui.mysite.settings")
    import django

    django.setup()
    from django.contrib.auth.models import User
    from django.contrib.staticfiles.handlers import StaticFilesHandler
    from django.core.handlers.wsgi import WSGIHandler
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    if not User.objects.filter(username="ana").exists():
        User.objects.create_superuser("ana", password="ana")
    return make_server("127.0.0.1", 0, StaticFilesHandler(WSGIHandler()), Threads, Quiet)


@contextmanager
def serving() -> Iterator[str]:
    """The address of the admin, while this process serves it."""
    server = make()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/admin/"
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def main() -> None:
    """Serve until interrupted."""
    server = make()
    print(f"serving http://127.0.0.1:{server.server_port}/admin/", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    main()
