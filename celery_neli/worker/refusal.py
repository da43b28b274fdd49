"""How a worker says that it cannot run with its settings: in one line, as beat does."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import click
from celery.exceptions import WorkerShutdown

from celery_neli.exceptions import ConfigurationError
from celery_neli.logs import escaping

EX_FAILURE = 1

logger = escaping(logging.getLogger(__name__))


class Refusal(click.ClickException, ConfigurationError):
    """What `app.Worker(...)` raises; the command `celery worker` prints its message and ends."""


@contextmanager
def refusing() -> Iterator[None]:
    """While a worker is made: a `ConfigurationError` inside becomes a `Refusal`."""
    try:
        yield
    except ConfigurationError as exc:
        raise Refusal(str(exc)) from None


def end_worker(refusal: ConfigurationError) -> NoReturn:
    """End a worker that runs already, in an orderly way: it would log any other error with its traceback. On the
    consumer's thread.
    """
    logger.critical("%s", refusal)
    raise WorkerShutdown(EX_FAILURE) from refusal
