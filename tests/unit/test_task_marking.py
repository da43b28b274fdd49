"""How `@leader_only` finds its tasks, and where their messages go."""

from __future__ import annotations

import functools
import inspect
import pickle
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery, Task, chain, chord, group, shared_task
from celery.beat import Scheduler
from kombu import Exchange, Queue

from celery_neli import ConfigurationError, leader_only
from celery_neli.exceptions import NotLeader
from celery_neli.worker.task_marking import mark_of
from tests.unit.leases import Lease, make_app, own_world

if TYPE_CHECKING:
    from collections.abc import Callable

ROLE_QUEUE = "shop.leader.leader"
STRATEGY = "celery_neli.worker.strategy:leader_only"


@pytest.fixture
def app() -> Celery:
    return make_app()


def sent(app: Celery, queue: str = ROLE_QUEUE) -> list[Any]:
    """The messages in a queue, taken out of it."""
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        found = []
        while (message := channel.basic_get(queue, no_ack=True) if queue in channel.queues else None) is not None:
            found.append(channel.message_to_python(message))
        return found


def ids(messages: list[Any]) -> list[str]:
    return [message.headers["id"] for message in messages]


@pytest.fixture(autouse=True)
def _own_world(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery gives the tasks of every app to all the others, and to those of other tests; one broker serves all."""
    own_world(monkeypatch, app)
    with app.connection_for_read() as connection:
        state = connection.transport.state
        state.clear()
        connection.default_channel.queues.clear()


def add(x: int, y: int = 0) -> int:
    """Add two numbers."""
    return x + y


def below(app: Celery, **options: Any) -> Any:
    return app.task(**options)(leader_only(_copy(add)))


def above(app: Celery, **options: Any) -> Any:
    return leader_only(app.task(**options)(_copy(add)))


def _copy(function: Callable[..., Any]) -> Callable[..., Any]:
    """Each test decorates a function of its own."""

    def copy(x: int, y: int = 0) -> int:
        return function(x, y)

    return functools.update_wrapper(copy, function, assigned=("__module__", "__name__", "__doc__", "__annotations__"))


def bound_below(app: Celery) -> Any:
    @app.task(bind=True)
    @leader_only
    def add(self: Task, x: int, y: int = 0) -> int:
        assert self.name
        return x + y

    return add


def bound_above(app: Celery) -> Any:
    @leader_only
    @app.task(bind=True)
    def add(self: Task, x: int, y: int = 0) -> int:
        assert self.name
        return x + y

    return add


def retried_below(app: Celery) -> Any:
    return below(app, autoretry_for=(ArithmeticError,))


def retried_above(app: Celery) -> Any:
    return above(app, autoretry_for=(ArithmeticError,))


def finalized_below(app: Celery) -> Any:
    app.finalize()
    return below(app)


def finalized_above(app: Celery) -> Any:
    app.finalize()
    return above(app, autoretry_for=(ArithmeticError,))


def evaluated_above(app: Celery) -> Any:
    promise = app.task(autoretry_for=(ArithmeticError,))(_copy(add))
    assert promise.name
    return leader_only(promise)


def wrapped_below(app: Celery) -> Any:
    def twice(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            function(*args, **kwargs)
            return function(*args, **kwargs)

        return wrapper

    return app.task(twice(leader_only(_copy(add))))


def wrapped_above(app: Celery) -> Any:
    def same(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return wrapper

    return leader_only(app.task(same(_copy(add))))


def class_based(app: Celery) -> Any:
    @leader_only
    class Add(app.Task):
        name = "add"

        def run(self, x: int, y: int = 0) -> int:
            return x + y

    return app.register_task(Add())


def of_base(app: Celery) -> Any:
    @leader_only
    class Base(app.Task):
        abstract = True

    return app.task(base=Base)(_copy(add))


def of_other_base(app: Celery) -> Any:
    class Base(app.Task):
        abstract = True

        def apply_async(self, *args: Any, **kwargs: Any) -> Any:
            return super().apply_async(*args, **kwargs)

    return app.task(base=Base)(leader_only(_copy(add)))


def of_class_below_a_marked_one(app: Celery) -> Any:
    @leader_only
    class Base(app.Task):
        abstract = True

    class Add(Base):
        name = "add"

        def run(self, x: int, y: int = 0) -> int:
            return x + y

    return app.register_task(Add)


def shared_below(app: Celery) -> Any:
    return shared_task(leader_only(_copy(add)))


def shared_above(app: Celery) -> Any:
    return leader_only(shared_task(_copy(add)))


def shared_above_finalized(app: Celery) -> Any:
    app.finalize()
    return leader_only(shared_task(name="shared")(_copy(add)))


EVERY_WAY = [
    below,
    above,
    bound_below,
    bound_above,
    retried_below,
    retried_above,
    finalized_below,
    finalized_above,
    evaluated_above,
    wrapped_below,
    wrapped_above,
    class_based,
    of_base,
    of_other_base,
    of_class_below_a_marked_one,
    shared_below,
    shared_above,
    shared_above_finalized,
]


@pytest.mark.parametrize("make", EVERY_WAY)
class TestEveryWay:
    """Whatever the way to a leader-only task."""

    def test_a_worker_takes_it_with_our_strategy(self, app: Celery, make: Callable[[Celery], Any]):
        """And knows what it asks for."""
        task = app.tasks[make(app).name]
        mark = mark_of(task)
        assert task.Strategy == STRATEGY
        assert mark is not None
        assert (mark.role, mark.on_standby, mark.stop_on_loss) == (None, "forward", False)

    def test_it_goes_to_the_roles_queue(self, app: Celery, make: Callable[[Celery], Any]):
        """And to no other, which the app does not get to know: each worker could consume it."""
        result = make(app).delay(1, y=2)
        assert ids(sent(app)) == [result.id]
        assert sent(app, "celery") == []
        assert ROLE_QUEUE not in dict.keys(app.amqp.queues)

    def test_its_body_runs_for_the_leader_only(self, app: Celery, make: Callable[[Celery], Any]):
        """Called in this process, with and without the lease."""
        task, lease = make(app), Lease(app)
        with pytest.raises(NotLeader, match="does not lead 'leader'"):
            task(1, y=2)
        with pytest.raises(NotLeader):
            task.run(1, y=2)
        lease.lead()
        assert task(1, y=2) == 3
        assert task.run(1, y=2) == 3

    def test_arguments_are_checked_when_it_is_sent(self, app: Celery, make: Callable[[Celery], Any]):
        """As for any task that Celery makes of a function, and only for these."""
        task = make(app)
        if make in (class_based, of_class_below_a_marked_one, wrapped_below, wrapped_above):
            task.apply_async((1, 2, 3, 4))
        else:
            with pytest.raises(TypeError):
                task.apply_async((1, 2, 3, 4))

    def test_it_is_pickled_by_name(self, app: Celery, make: Callable[[Celery], Any]):
        """As tasks are; nothing of ours goes with it."""
        task = app.tasks[make(app).name]
        data = pickle.dumps(task)
        assert b"neli" not in data
        assert pickle.loads(data).name == task.name  # noqa: S301 - our own

    def test_it_looks_like_its_function(self, app: Celery, make: Callable[[Celery], Any]):
        """Documentation, signature and what was wrapped."""
        task = app.tasks[make(app).name]
        parameters = inspect.signature(task.run).parameters
        assert [name for name in parameters if name != "self"] == ["x", "y"]
        if make in (below, above, retried_below, finalized_above, of_base, shared_below, shared_above):
            assert task.__doc__ == "Add two numbers."
            assert inspect.unwrap(task.__wrapped__)(1, 2) == 3
            assert type(task).__annotations__ == {"x": "int", "y": "int", "return": "int"}
            assert type(type(task).__annotations__) is dict


@pytest.mark.parametrize("make", [below, above, class_based, of_base])
def test_configuration_is_not_loaded_by_decorating(make: Callable[[Celery], Any]):
    """A settings module may import the tasks: Celery's promise holds."""
    app = Celery("shop", set_as_current=False)
    if make is class_based:
        leader_only(type("Add", (app.Task,), {"name": "add", "run": lambda self: None}))
    else:
        make(app)
    assert not app.configured
    assert not app.finalized


@pytest.mark.parametrize("make", [below, above])
def test_every_app_that_gets_the_task_gets_the_mark(make: Callable[[Celery], Any]):
    """Celery gives the tasks of one app to the others, when these are finalised."""
    first, later = make_app("first"), make_app("later")
    name = make(first).name
    for app in (first, later):
        assert app.tasks[name].Strategy == STRATEGY
        with pytest.raises(NotLeader):
            app.tasks[name](1)
    Lease(later).lead()
    assert later.tasks[name](1) == 1
    with pytest.raises(NotLeader):
        first.tasks[name](1)


@pytest.mark.parametrize("make", [finalized_above, evaluated_above])
def test_apps_finalised_later_get_the_mark_of_a_task_that_was_made(make: Callable[[Celery], Any]):
    """The decorator came after the task."""
    first, later = make_app("first"), make_app("later")
    name = make(first).name
    assert later.tasks[name].Strategy == STRATEGY


@pytest.mark.parametrize("order", ["below", "above"])
def test_pydantic_tasks(app: Celery, order: str):
    """Celery's own wrapper is around the gate."""
    model = pytest.importorskip("pydantic").create_model("Number", x=(int, ...))

    def take(number: Any) -> int:
        return int(number.x)

    take.__annotations__ = {"number": model}
    make = app.task(pydantic=True)
    task = make(leader_only(take)) if order == "below" else leader_only(make(take))
    for each in (app, make_app("later")):
        assert each.tasks[task.name].Strategy == STRATEGY
    with pytest.raises(NotLeader):
        task({"x": "1"})
    Lease(app).lead()
    assert task({"x": "1"}) == 1


@pytest.mark.parametrize("make", [wrapped_below, wrapped_above, below, above])
@pytest.mark.parametrize("off", [False, True])
def test_a_task_of_an_app_that_is_not_current(make: Callable[[Celery], Any], off: bool):
    """What counts is its own app's election, through all decorators."""
    other = make_app("other", neli_enabled=not off)
    task = make(other)
    if not off:
        with pytest.raises(NotLeader):
            task(1)
        Lease(other).lead()
    assert task(1, 2) == 3


def test_a_decorator_that_forgets_its_function_is_still_closed(app: Celery):
    """Without functools.wraps nothing can be routed; the body asks all the same."""

    def careless(function: Callable[..., Any]) -> Callable[..., Any]:
        def add(*args: Any) -> Any:
            return function(*args)

        return add

    task = app.task(careless(leader_only(_copy(add))))
    assert mark_of(task) is None
    with pytest.raises(NotLeader):
        task(1)


def test_annotations_of_the_configuration_do_not_open_the_gate(app: Celery):
    """The setting task_annotations may replace `run`, by what wraps the innermost function."""

    def around(run: Callable[..., Any]) -> Callable[..., Any]:
        return lambda self, *args: run(*args)

    app.conf.task_annotations = {"*": {"@run": around}}
    task = below(app)
    with pytest.raises(NotLeader):
        task(1)
    Lease(app).lead()
    assert task(1, 2) == 3


class TestRouting:
    """Where a leader-only task goes."""

    @pytest.fixture(params=[below, above])
    def task(self, request: pytest.FixtureRequest, app: Celery) -> Any:
        return request.param(app)

    def test_queues_that_are_not_created_when_missing(self, app: Celery, task: Any):
        """task_create_missing_queues=False refuses names: ours is no name."""
        app.conf.task_create_missing_queues = False
        app.conf.task_queues = [Queue("celery")]
        result = task.apply_async((1,), link=task.s(), countdown=5)
        assert ids(sent(app)) == [result.id]

    @pytest.mark.parametrize(
        "route",
        [
            {"queue": "media"},
            "media",
            {"exchange": "media", "routing_key": "media"},
            {"queue": "media", "exchange": "media", "routing_key": "other", "exchange_type": "topic"},
        ],
    )
    def test_routes_of_the_configuration_are_overruled(self, app: Celery, task: Any, route: Any):
        """Of task_routes only what is no destination stays."""
        app.conf.task_routes = {"*": route}
        app.amqp.queues.add(Queue("media"))
        result = task.delay(1)
        assert ids(sent(app)) == [result.id]
        assert sent(app, "media") == []

    @pytest.mark.parametrize("destination", [{"queue": "other"}, {"exchange": "other", "routing_key": "other"}])
    def test_a_call_may_say_otherwise(self, app: Celery, task: Any, destination: dict[str, str]):
        """It is forwarded on arrival."""
        with app.connection_for_write() as connection:
            Queue("other", Exchange("other"), "other", channel=connection.default_channel).declare()
        result = task.apply_async((1,), **destination)
        assert ids(sent(app, "other")) == [result.id]
        assert sent(app) == []

    def test_canvases(self, app: Celery, task: Any):
        """Members of groups and chords; a chain's first."""
        group(task.s(1), task.s(2), app=app).apply_async()
        assert len(sent(app)) == 2
        chain(task.s(1), task.s(2), app=app).apply_async()
        (first,) = sent(app)
        assert len(first.payload[2]["chain"]) == 1
        chord([task.s(1), task.s(2)], task.s(), app=app).apply_async()
        assert len(sent(app)) == 2
        task.map([1, 2]).apply_async()  # runs as a task of Celery's own, which calls ours
        assert sent(app) == []

    def test_a_link_is_routed_when_it_is_called(self, app: Celery, task: Any):
        """The signature names no queue: the configuration of who calls it decides."""
        assert "queue" not in task.s(1).options
        task.s(1).apply_async(countdown=3)
        task.s(1).set(priority=3).delay()
        assert [message.properties.get("priority") for message in sent(app)] in ([0, 3], [None, 3])

    def test_entries_of_beat(self, app: Celery, task: Any):
        """The scheduler sends by the entry's name and options."""
        app.conf.beat_schedule = {"e": {"task": task.name, "schedule": 1.0, "args": (1,), "options": {"priority": 4}}}
        scheduler = Scheduler(app)
        scheduler.apply_async(scheduler.schedule["e"], advance=False)
        (message,) = sent(app)
        assert message.properties["priority"] == 4

    def test_priority_queue_and_other_options_stay(self, app: Celery, task: Any):
        """Only the destination is ours."""
        task.apply_async((1,), priority=5, headers={"tenant": "a"}, expires=60)
        (message,) = sent(app)
        assert message.properties["priority"] == 5
        assert message.headers["tenant"] == "a"
        assert message.headers["expires"]

    def test_roles_have_a_queue_each(self, app: Celery):
        """And a name that the setting neli_leader_queue may change."""
        app.conf.update(neli_roles=["billing", "mail"], neli_leader_queue="only.{role}")
        task = app.task(leader_only(role="mail")(_copy(add)))
        task.delay(1)
        assert len(sent(app, "only.mail")) == 1

    def test_unknown_roles_are_refused_when_sending(self, app: Celery):
        """With those that there are."""
        app.conf.neli_roles = ["billing", "mail"]
        task = app.task(leader_only(role="male")(_copy(add)))
        with pytest.raises(ConfigurationError, match=r"male.*'billing', 'mail'"):
            task.delay(1)

    def test_a_role_must_be_named_if_there_are_several(self, app: Celery, task: Any):
        """The error lists them."""
        app.conf.neli_roles = ["billing", "mail"]
        with pytest.raises(ConfigurationError, match="'billing', 'mail'"):
            task.delay(1)

    def test_switched_off_it_is_an_ordinary_task(self, app: Celery, task: Any):
        """neli_enabled=False: no queue of the role's own."""
        app.conf.neli_enabled = False
        result = task.delay(1)
        assert ids(sent(app, "celery")) == [result.id]

    def test_other_tasks_go_where_they_went(self, app: Celery, task: Any):
        """A neighbour notices nothing."""
        other = app.task(_copy(add), name="other")
        result = other.delay(1)
        assert ids(sent(app, "celery")) == [result.id]
        assert mark_of(other) is None


class TestRefusals:
    """One clear error, when it is decorated if that can be known then."""

    @pytest.mark.filterwarnings("ignore:[^a-z]*The '.*' task attribute is deprecated")  # Celery 5.7
    @pytest.mark.parametrize("option", ["queue", "exchange", "routing_key"])
    @pytest.mark.parametrize("make", [below, above, finalized_below, finalized_above, evaluated_above])
    def test_a_destination_of_its_own(self, app: Celery, make: Callable[..., Any], option: str):
        """Both are named; and it stays refused, however often the task is asked for."""
        if make in (finalized_below, finalized_above):
            app.finalize()
            make = below if make is finalized_below else above
        if make is evaluated_above:
            promise = app.task(_copy(add), **{option: "other"})
            assert promise.name
            with pytest.raises(TypeError, match=rf"{option}='other'.*@leader_only"):
                leader_only(promise)
            return
        for _ in range(1 if app.finalized else 2):
            with pytest.raises(TypeError, match=rf"{option}='other'.*@leader_only"):
                assert make(app, **{option: "other"}).name

    def test_a_destination_in_a_class(self, app: Celery):
        """Of the class itself, or of one made of it."""

        class Report(app.Task):
            queue = "other"

        with pytest.raises(TypeError, match="queue='other'"):
            leader_only(Report)

        @leader_only
        class Base(app.Task):
            abstract = True

        with pytest.raises(TypeError, match="queue='other'"):
            type("Sub", (Base,), {"queue": "other"})

    @pytest.mark.parametrize(
        "twice",
        [
            lambda app: leader_only(above(app)),
            lambda app: leader_only(below(app)),
            lambda app: leader_only(leader_only(_copy(add))),
            lambda app: leader_only(leader_only(type("T", (app.Task,), {}))),
        ],
        ids=["both above", "above and below", "both below", "class"],
    )
    def test_twice(self, app: Celery, twice: Callable[[Celery], Any]):
        """Which of the two should hold?"""
        with pytest.raises(TypeError, match="twice"):
            twice(app)

    @pytest.mark.parametrize(
        "target", [3, "name", object(), object, {"task": "a"}, staticmethod(add), classmethod(add)]
    )
    def test_what_is_no_function(self, target: Any):
        """Numbers, strings, instances, classes, signatures, unbound methods."""
        with pytest.raises(TypeError, match="@leader_only takes a function, a task or a task class"):
            leader_only(target)

    def test_functions_that_work_later(self):
        """The lease is asked before the call, and a coroutine or a generator does its work after it."""

        async def coroutine() -> None: ...

        def generator() -> Any:
            yield

        async def both() -> Any:
            yield

        for function in (coroutine, generator, both):
            with pytest.raises(TypeError, match="do their work when called"):
                leader_only(function)

    def test_proxies_of_something_else(self):
        """Celery's current_app is no task."""
        from celery import current_app

        with pytest.raises(TypeError, match="not this proxy"):
            leader_only(current_app)

    def test_an_unknown_on_standby(self):
        """Names the three."""
        with pytest.raises(ValueError, match=r"'drop'.*'forward', 'skip', 'fail'"):
            leader_only(on_standby="drop")

    def test_a_role_that_is_no_name(self):
        """Before any configuration is known."""
        with pytest.raises(TypeError, match="role=3"):
            leader_only(role=3)  # type: ignore[call-overload]


def test_a_refused_task_is_not_registered(app: Celery):
    """Nobody gets it by its name either."""
    task = below(app, queue="other", name="refused")
    with pytest.raises(TypeError):
        app.finalize()
    with pytest.raises(TypeError):
        task.delay(1)
    assert "refused" not in app.tasks
