"""Which Celery app the admin shows: the one that ``NELI_APP`` names, else the current one."""

from __future__ import annotations

import logging
from threading import Lock
from typing import Any

from celery import Celery
from celery.app import app_or_default
from celery.app.utils import find_app
from django.conf import settings

from celery_neli.exceptions import ConfigurationError
from celery_neli.logs import escaping
from celery_neli.printable import printable_error, shown

logger = escaping(logging.getLogger(__name__))
EXAMPLE = "NELI_APP = 'mysite.celery:app'"
_remembered: Any = None
_loaded: set[int] = set()
_lock = Lock()


def remember() -> None:
    """Note the current app. Celery knows it only in the thread that made it, and a web server has others."""
    global _remembered
    _remembered = app_or_default()


def celery_app() -> Celery:
    """Return the app. Raises `ConfigurationError` if there is none."""
    named = getattr(settings, "NELI_APP", None)
    if named is not None:
        return _named(named)
    for found in (_remembered, app_or_default()):
        if isinstance(found, Celery) and not _stands_in(found):
            return found
    raise ConfigurationError(
        "Django's process has no Celery app: make it in the project's __init__.py, as Celery's guide for Django does, "
        f"or name it in Django's settings: {EXAMPLE}"
    )


def _named(named: Any) -> Celery:
    why = "it is no Celery app"
    try:
        found = named if isinstance(named, Celery) else find_app(named)
        if isinstance(found, Celery):
            return found
    except Exception as exc:  # noqa: BLE001 - the module may raise anything
        why = printable_error(exc)
    raise ConfigurationError(f"NELI_APP = {shown(named)}: {why}; name the Celery app, such as {EXAMPLE}")


def _stands_in(app: Celery) -> bool:
    """Return True for the app that Celery makes by itself where a program made none."""
    return bool(app.main == "default" and not app.set_as_current)


def task_names(app: Celery) -> list[str]:
    """Return the names of the tasks that the app knows here, without Celery's own. Imports them when first called."""
    with _lock:
        if id(app) not in _loaded:
            _loaded.add(id(app))
            try:
                app.loader.import_default_modules()
            except Exception as exc:  # noqa: BLE001 - a user's module may raise anything; its tasks can be typed
                logger.warning("django: tasks of app=%s could not be imported: %s", app.main, printable_error(exc))
    return sorted(name for name in app.tasks if not name.startswith("celery."))
