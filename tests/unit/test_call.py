"""What an entry calls: a name, a task, a signature with all that it holds; nothing that merely has a name."""

from __future__ import annotations

import enum
import functools
import types
from collections import namedtuple
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, Task, chain, chord, group, shared_task
from celery.local import Proxy
from celery.result import AsyncResult
from kombu import Queue

from celery_neli import install, periodic
from celery_neli.exceptions import ConfigurationError
from celery_neli.periodic.definition import define
from celery_neli.periodic.view import entry_names
from tests.unit.schedulers import make_app
from tests.unit.schedules import Desk

APP = make_app()
OTHER = Celery("other", broker="memory://", set_as_current=False)


@APP.task(name="shop.tidy", shared=False)
def tidy(shop: int, deep: bool = False) -> None:
    """A task."""


@APP.task(name="shop.bound", shared=False, bind=True)
def bound(self: Any, shop: int) -> None:
    """A task that is given itself."""


@OTHER.task(name="other.tidy", shared=False)
def foreign(shop: int) -> None:
    """A task of another app."""


class Names(str, enum.Enum):
    """Names of tasks, as an application may keep them."""

    TIDY = "shop.tidy"


def put(task: Any, **given: Any) -> tuple[str | None, list[Any], dict[str, Any], dict[str, Any]]:
    found = define(APP, "x", task, given.pop("schedule", 60), **given)
    return found.task, found.args, found.kwargs, found.options


@pytest.mark.parametrize(
    ("task", "given", "expected"),
    [
        ("shop.tidy", {"args": [7]}, ("shop.tidy", [7], {}, {})),
        (tidy, {"args": (7,)}, ("shop.tidy", [7], {}, {})),
        (APP.tasks["shop.tidy"], {"kwargs": {"shop": 7}}, ("shop.tidy", [], {"shop": 7}, {})),
        (Proxy(lambda: APP.tasks["shop.tidy"]), {"args": [7]}, ("shop.tidy", [7], {}, {})),
        (Names.TIDY, {"args": [7]}, ("shop.tidy", [7], {}, {})),
        (tidy.s(7, deep=True), {}, ("shop.tidy", [7], {"deep": True}, {})),
        (tidy.si(7, deep=True), {}, ("shop.tidy", [7], {"deep": True}, {})),
        (tidy.s(), {"args": [7], "kwargs": {"deep": True}}, ("shop.tidy", [7], {"deep": True}, {})),
        (tidy.s(7), {"kwargs": {"deep": True}}, ("shop.tidy", [7], {"deep": True}, {})),
        (tidy.s(shop=7), {"kwargs": {"deep": True}}, ("shop.tidy", [], {"shop": 7, "deep": True}, {})),
        (tidy.s(7).set(queue="q", expires=60), {}, ("shop.tidy", [7], {}, {"queue": "q", "expires": 60})),
        (
            tidy.s(7).set(queue="q"), {"options": {"neli_misfire": "skip"}},
            ("shop.tidy", [7], {}, {"queue": "q", "neli_misfire": "skip"}),
        ),
        (APP.signature("elsewhere.task", args=(1,)), {}, ("elsewhere.task", [1], {}, {})),
        (bound.s(7), {}, ("shop.bound", [7], {}, {})),
    ],
)  # fmt: skip
def test_what_a_signature_holds_is_taken_over(task: Any, given: dict[str, Any], expected: Any) -> None:
    """Arguments, keywords and options; what is given beside it adds to them."""
    assert put(task, **given) == expected


@pytest.mark.parametrize(
    ("task", "given", "says"),
    [
        (tidy.s(7), {"args": [8]}, r"args = \[8\]: the signature .* has arguments, too"),
        (tidy.s(7, deep=True), {"kwargs": {"deep": False}}, r"kwargs = .*the signature .* says deep, too"),
        (tidy.s(7).set(queue="a"), {"options": {"queue": "b"}}, r"options = .*the signature .* says queue, too"),
        (tidy.si(7), {"kwargs": {"deep": True}}, r"kwargs = .*immutable"),
        (tidy.si(), {"args": [7]}, r"args = .*immutable"),
        (tidy.s(7).set(task_id="1"), {}, "options: task_id cannot be set"),
        (tidy.s(7).set(eta=5), {}, "options: eta cannot be set"),
        (tidy.s(7).set(quue="q"), {}, "options: there is no option quue; did you mean queue"),
        (tidy.s({1, 2}), {}, "args = .*JSON"),
        (chain(tidy.s(1), tidy.si(2)), {}, "task = .*a chain cannot be an entry"),
        ("celery.chain", {}, "task = 'celery.chain': no worker runs it"),
        ("celery.group", {}, "task = 'celery.group': no worker runs it"),
        (tidy.s(1) | tidy.si(2), {}, "task = .*a chain cannot be an entry"),
        (group(tidy.s(1), tidy.s(2)), {}, "task = .*a group cannot be an entry"),
        (chord([tidy.s(1)], tidy.si(2)), {}, "task = .*a chord cannot be an entry"),
        (tidy.chunks([(1,)], 2), {}, "task = .*a chunks cannot be an entry"),
        (tidy.map([1]), {}, "task = .*a map cannot be an entry"),
        (dict(tidy.s(7)), {}, "task = .*give the name of a task"),
        (foreign, {}, "task = .*belongs to the app 'other'.*give the name 'other.tidy'"),
        (foreign.s(1), {}, "task = .*belongs to the app 'other'"),
        (Task, {}, "task = .*a class: give the task itself"),
        (type("Mine", (Task,), {"name": "shop.tidy"}), {}, "task = .*a class: give the task itself"),
        (tidy.delay, {}, "task = .*a method of a task"),
        (functools.partial(tidy, 7), {}, "task = .*give the name of a task"),
        (lambda: None, {}, "task = .*give the name of a task"),
        (types.SimpleNamespace(name="shop.tidy"), {}, "task = .*give the name of a task"),
        (Queue("shop.tidy"), {}, "task = .*give the name of a task"),
        (Path("shop.tidy"), {}, "task = .*give the name of a task"),
        (enum.Enum("Plain", {"TIDY": 1})["TIDY"], {}, "task = .*give the name of a task"),
        (AsyncResult("1", app=APP), {}, "task = .*give the name of a task"),
        (b"shop.tidy", {}, "task = .*give the name of a task"),
        (None, {}, "task = None: give the name"),
        ("shop.tidy", {"schedule": tidy.s(7)}, "schedule = .*Signature cannot"),
        ("shop.tidy", {"args": tidy.s(7)}, "args = .*give a list"),
        ("shop.tidy", {"kwargs": tidy.s(7)}, "kwargs = .*give a dict"),
        ("shop.tidy", {"options": tidy.s(7)}, "options = .*give a dict"),
        ("shop.tidy", {"args": "abc"}, "args = 'abc': give a list"),
        ("shop.tidy", {"args": range(3)}, "args = .*give a list"),
    ],
)
def test_what_is_no_task_or_says_two_things_is_refused_by_its_field(
    task: Any, given: dict[str, Any], says: str
) -> None:
    """Nothing that was given is dropped in silence."""
    with pytest.raises(ConfigurationError, match=f"^{says}"):
        put(task, **given)


def test_a_shared_task_is_of_every_app() -> None:
    """Also where another app is the current one."""

    @shared_task(name="lib.shared")  # type: ignore[untyped-decorator]
    def shared() -> None:
        """A task of a library."""

    app = make_app()
    app.finalize()
    assert define(app, "x", shared, 60).task == "lib.shared"


def test_the_app_may_be_behind_a_proxy() -> None:
    """Such as `celery.current_app`."""
    assert define(Proxy(lambda: APP), "x", tidy, 60, args=[7]).task == "shop.tidy"


@pytest.mark.parametrize("app", [None, "shop", object(), Celery, types.SimpleNamespace(conf={}, steps={})])
def test_what_is_no_app_is_refused_by_its_name(app: Any) -> None:
    """Wherever an app is asked for."""
    for asks in (install, periodic.list, lambda given: periodic.put(given, "x", "t", 60)):
        with pytest.raises(ConfigurationError, match=r"^app = .*give the Celery app"):
            asks(app)


def test_a_name_may_be_of_an_enum() -> None:
    """The entry has the name that it stands for, whatever `str` makes of it."""
    desk = Desk()

    class Entries(str, enum.Enum):
        """Names of entries."""

        TIDY = "tidy-up"

        def __str__(self) -> str:
            return f"Entries.{self.name}"

    desk.put(Entries.TIDY)
    desk.editor().pause(Entries.TIDY)
    assert [name for _, name in desk.store.values] == ["tidy-up"]
    assert desk.look("tidy-up").paused
    desk.editor().remove(Entries.TIDY)
    assert "tidy-up" not in entry_names(desk.editor())


def test_an_interval_of_a_subclass_is_the_interval_that_it_is() -> None:
    """Its own idea of days and seconds is not asked."""

    class Odd(timedelta):
        """A duration whose days are something else."""

        @property
        def days(self) -> int:  # type: ignore[override]
            return 99

    assert define(APP, "x", tidy, Odd(minutes=5), args=[7]).schedule == "PT5M"


# -- arguments that the task does not take --


@pytest.mark.parametrize(
    ("task", "given", "says"),
    [
        (tidy, {}, r"args = \[\]: shop.tidy does not take these arguments: .*missing .* 'shop'"),
        ("shop.tidy", {"args": [1, 2, 3]}, r"args = \[1, 2, 3\]: shop.tidy does not take"),
        ("shop.tidy", {"args": [1], "kwargs": {"depe": 1}}, r"kwargs = \{'depe': 1\}: shop.tidy does not take .*depe"),
        (tidy.s(1, 2, 3), {}, r"args = \[1, 2, 3\]: shop.tidy does not take"),
        (bound.s(1, 2), {}, r"args = \[1, 2\]: shop.bound does not take"),
    ],
)
def test_arguments_that_the_task_does_not_take_are_told_at_put(task: Any, given: Any, says: str) -> None:
    """Where this app knows the task."""
    with pytest.raises(ConfigurationError, match=f"^{says}"):
        put(task, **given)


def test_arguments_are_not_judged_where_the_task_is_not_known_or_does_not_want_it() -> None:
    """The process that puts an entry need not have its task; `typing = False` switches Celery's check off; a class with
    an `apply_async` of its own may add arguments.
    """
    app = make_app()

    class Own(Task):  # type: ignore[misc]
        """Adds an argument to each call."""

        def apply_async(self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
            return super().apply_async((1, *(args or ())), kwargs, *more, **options)

    @app.task(name="loose", shared=False, typing=False)
    def loose(one: int) -> None:
        """Takes one argument, and Celery does not ask."""

    @app.task(name="own", shared=False, base=Own)
    def own(one: int) -> None:
        """Is given its argument by its class."""

    for task in ("unknown", loose, own):
        assert define(app, "x", task, 60).args == []


Point = namedtuple("Point", "x y")


def test_a_tuple_of_any_class_is_a_list_of_arguments() -> None:
    """As it is in Celery."""
    assert put("unknown", args=Point(1, 2))[1] == [1, 2]
