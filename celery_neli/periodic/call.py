"""What an entry calls: a task by its name, the task itself, or a signature with all that it holds.

Types are asked for, not attributes: many things have a `name`. Pure; imports no Kafka client.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MethodType
from typing import Any, NoReturn

from celery import Celery, Task
from celery.canvas import Signature

from celery_neli.exceptions import ConfigurationError
from celery_neli.schedule_topic.values import MAX_TASK, shown

__all__ = ["Call", "call_of", "check_app", "check_arguments", "is_mapping", "plain"]

EXAMPLE = "give the name of a task, such as 'shop.tasks.tidy_up', the task itself, or its signature"
#: Names of Celery's that stand for several tasks.
_UNREAL = ("celery.chain", "celery.group")


@dataclass(frozen=True, slots=True)
class Call:
    """The name of a task, and what to send it with."""

    task: str
    args: Any
    kwargs: Any
    options: Any


def check_app(app: Any) -> Any:
    """Return ``app``.

    Raises:
        ConfigurationError: it is not a Celery app.
    """
    if isinstance(app, type) or not isinstance(app, Celery):
        raise ConfigurationError(f"app = {shown(app)}: give the Celery app")
    return app


def plain(text: Any) -> Any:
    """Return a string of a subclass of `str`, such as an enum of names, as a plain one; all else as it is."""
    return str.__str__(text) if isinstance(text, str) and type(text) is not str else text


def is_mapping(value: Any) -> bool:
    """Return True for a dict with strings for keys that is meant as such: a signature only happens to be one."""
    return (
        isinstance(value, Mapping) and not isinstance(value, Signature) and all(isinstance(key, str) for key in value)
    )


def call_of(app: Any, task: Any, args: Any, kwargs: Any, options: Any) -> Call:
    """Return what ``task`` means, with what is given beside it.

    A signature brings its arguments and options. What is given beside it must not say anything else: arguments in two
    places, or one keyword or option in two, are refused.

    Raises:
        ConfigurationError: it names the field, what is wrong with it and what to give.
    """
    if isinstance(task, str):
        return Call(_name(plain(task), task), args, kwargs, options)
    if isinstance(task, type):
        _refuse(task, "this is a class: give the task itself, which app.register_task returns, or its name")
    if isinstance(task, Task):
        _check_home(app, task, task.name, task.app)
        return Call(_name(task.name, task), args, kwargs, options)
    if isinstance(task, Signature):
        return _of_signature(app, task, args, kwargs, options)
    if isinstance(task, MethodType) and isinstance(task.__self__, Task):
        _refuse(task, "this is a method of a task: give the task itself, or its signature")
    return _refuse(task, EXAMPLE)


def check_arguments(app: Any, call: Call) -> None:
    """Check that the task takes these arguments, as its `apply_async` will, if this app knows the task.

    Raises:
        ConfigurationError: the task does not take them.
    """
    task = app.tasks.get(call.task)
    if task is None or not task.typing or type(task).apply_async is not Task.apply_async:
        return  # an apply_async of its own may add arguments
    header = getattr(task, "__header__", None)
    if header is None:
        return
    try:
        header(*(call.args or ()), **(call.kwargs or {}))
    except TypeError as exc:
        field = "kwargs" if "keyword" in str(exc) else "args"
        value = call.kwargs if field == "kwargs" else call.args
        given = shown((list if field == "args" else dict)(value or ()))
        raise ConfigurationError(f"{field} = {given}: {call.task} does not take these arguments: {exc}") from None


def _of_signature(app: Any, signature: Any, args: Any, kwargs: Any, options: Any) -> Call:
    if type(signature) is not Signature:
        name = str(signature.get("task"))
        what = name.removeprefix("celery.") if name.startswith("celery.") else type(signature).__name__
        _refuse(signature, f"a {what} cannot be an entry: give a task that calls it")
    name = signature.get("task")
    held = {field: signature.get(field) for field in ("args", "kwargs", "options")}
    given = {"args": args, "kwargs": kwargs, "options": options}
    if signature.get("immutable") and (given["args"] or given["kwargs"]):
        field = "args" if given["args"] else "kwargs"
        raise ConfigurationError(
            f"{field} = {shown(given[field])}: the signature {shown(signature)} is immutable and takes no more "
            "arguments: give all of them in one place"
        )
    if held["args"] and given["args"]:
        raise ConfigurationError(
            f"args = {shown(given['args'])}: the signature {shown(signature)} has arguments, too: give all of them in "
            "one place"
        )
    for field in ("kwargs", "options"):
        if given[field] and held[field]:
            if not is_mapping(given[field]):
                continue  # the check of the fields will refuse it
            both = sorted(given[field].keys() & held[field].keys())
            if both:
                raise ConfigurationError(
                    f"{field} = {shown(given[field])}: the signature {shown(signature)} says {', '.join(both)}, too: "
                    "give it in one place"
                )
            given[field] = {**held[field], **given[field]}
    _check_home(app, signature, name, getattr(signature, "_app", None))
    return Call(_name(plain(name), signature), *(given[field] or held[field] or given[field] for field in given))


def _check_home(app: Any, given: Any, name: Any, home: Any) -> None:
    """Refuse a task of another app: only workers of that app may have it. A shared task belongs to every app."""
    if isinstance(home, Celery) and isinstance(app, Celery) and not _is_same(home, app) and name not in app.tasks:
        _refuse(
            given,
            f"it belongs to the app {home.main!r}, and {app.main!r} has no task of that name; if its workers do, give "
            f"the name {shown(name)}",
        )


def _is_same(one: Any, other: Any) -> bool:
    """Return True if both are one app; either may be a proxy of it, such as `current_app`."""
    return _behind(one) is _behind(other)


def _behind(app: Any) -> Any:
    behind = getattr(app, "_get_current_object", None)
    return app if behind is None else behind()


def _name(name: Any, given: Any) -> str:
    if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > MAX_TASK:
        _refuse(given, EXAMPLE)
    if name in _UNREAL:  # what `add_periodic_task` makes of a chain, too
        _refuse(given, "no worker runs it: give a task that calls the chain or the group")
    return name


def _refuse(task: Any, why: str) -> NoReturn:
    raise ConfigurationError(f"task = {shown(task)}: {why}")
