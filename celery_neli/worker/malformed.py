"""What is wrong with a message is the message's fault: Celery rejects it, and the worker takes the next one.

Celery rejects a message for which a handler raises `InvalidTaskError`. Most other errors that a message can cause end a
worker, and some count as a lost connection (kombu's Redis lists KeyError): the worker reconnects, and gets the same
message again. So these become an `InvalidTaskError` here, or reject the request where no caller would catch that.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from celery.exceptions import InvalidTaskError, TaskRevokedError
from celery.worker import state
from kombu.exceptions import ContentDisallowed, DecodeError

from celery_neli.beat.publish import DATA_ERRORS
from celery_neli.logs import escaping
from celery_neli.printable import printable

MESSAGE_ERRORS: Final = (*DATA_ERRORS, AttributeError)
MOST_OF_AN_ERROR: Final = 300

logger = escaping(logging.getLogger(__name__))


@contextmanager
def rejecting() -> Iterator[None]:
    """Turn an error that a message caused inside into an `InvalidTaskError`; those that Celery knows stay as they are.

    Use it only for code that does not wait for the broker: otherwise these errors may come from the broker.
    """
    try:
        yield
    except (InvalidTaskError, ContentDisallowed, DecodeError):
        raise
    except MESSAGE_ERRORS as exc:
        raise InvalidTaskError(printable(f"the message is no task's: {exc!r}", MOST_OF_AN_ERROR)) from exc


class Checked:
    """A mixin for the `Request` class of a task: reject a message of which no request can be made."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Celery makes a subclass for speed (`create_request_cls`) whose method does not call ours: stand before it."""
        super().__init_subclass__(**kwargs)
        execute = cls.__dict__.get("execute_using_pool")
        if execute is not None:
            cls.execute_using_pool = _rejecting(execute)  # type: ignore[attr-defined]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with rejecting():
            super().__init__(*args, **kwargs)
            hash((self.id, self.name))  # type: ignore[attr-defined]  # Celery looks them up
            _check_time_limits(self.time_limits)  # type: ignore[attr-defined]


def _check_time_limits(limits: Any) -> None:
    """Check the limits now: the pool reads them while the task runs, and an error would then end the worker."""
    for limit in limits:
        if limit is not None and not (isinstance(limit, (int, float)) and -math.inf < limit < math.inf):
            raise InvalidTaskError(f"invalid time limit: {printable(limit)}")
    _hard, _soft = limits


def _rejecting(execute: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(execute)
    def execute_using_pool(self: Any, pool: Any, **kwargs: Any) -> Any:
        try:
            return execute(self, pool, **kwargs)
        except MESSAGE_ERRORS as exc:  # a timer may have called this, and then catches nothing
            logger.error("message rejected task=%s id=%s: it cannot be handed to the pool: %r", self.name, self.id, exc)
            self.reject(requeue=False)
            state.task_ready(self)
            raise TaskRevokedError(self.id) from exc  # the caller frees the slot of the pool

    return execute_using_pool


def checked(base: type) -> type:
    """Return the request class `base` of a task with `Checked` in front."""
    return type("CheckedRequest", (Checked, unchecked(base)), {"__module__": __name__})


def unchecked(base: type) -> type:
    """Return the class that `checked` was given to make `base`, or `base` itself."""
    return next(each for each in base.__mro__ if not issubclass(each, Checked))
