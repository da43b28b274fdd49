"""Build the constant parts of a periodic task's messages once, and not for each message.

Celery looks up routes, settings and the queue, builds the headers and binds the queue to the channel for every message.
For a periodic task all of that comes out the same each time. So the first message goes Celery's own way and is recorded
as it leaves: it is the template for all that follow. Ids, `expires`, arguments and the entry's own headers are made for
each message; the rest is copied. The message is the same, byte for byte.

Where that is uncertain there is no template, and every message goes Celery's way: something is overridden or patched,
receivers of the publishing signals may change it, a router is a callable, an option has a value that could change.
There are a thousand templates at most, and entries that differ in arguments only share one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import FunctionType, ModuleType
from typing import Any

import celery.app.amqp
import celery.app.base
import celery.app.task
import celery.beat
import celery.utils.time
import kombu.messaging
from celery.app.routes import MapRoute, Router
from celery.beat import Scheduler as CelerysScheduler
from celery.signals import after_task_publish, before_task_publish, task_sent
from celery.utils.saferepr import saferepr
from celery.utils.time import maybe_make_aware
from kombu.utils.uuid import uuid


def source_of(module: ModuleType) -> str:
    """Return the file that the module's functions were compiled from."""
    for value in vars(module).values():
        if type(value) is FunctionType and value.__module__ == module.__name__ and not hasattr(value, "__wrapped__"):
            return value.__code__.co_filename
    return str(module.__file__)


def is_unpatched(owner: Any, name: str, source: str) -> bool:
    """Return True if ``owner.name`` is a function, or a method, written in the file ``source``.

    False for a wrapper, although it copies the name, the module or even the code of what it wraps (functools, wrapt:
    Sentry, Datadog, New Relic, mocks).
    """
    found = getattr(owner, name, None)
    function = getattr(found, "__func__", found)
    return type(function) is FunctionType and function.__code__.co_filename == source


TEMPLATES = 1000
#: Options that say where a message goes and how; `headers` and `task_id` are made for each message.
ROUTING = frozenset(
    (
        *("queue", "exchange", "routing_key", "exchange_type", "delivery_mode", "priority", "retry", "add_to_parent"),
        *("expires", "serializer", "compression", "time_limit", "soft_time_limit", "ignore_result", "shadow"),
    )
)
_KNOWN = ROUTING | {"headers", "task_id"}
_PLAIN = (str, int, float, bool, type(None))
#: The headers of protocol 2. An entry's own header of such a name would be mistaken for one of them.
_STANDARD = frozenset(
    (
        *("lang", "task", "id", "shadow", "eta", "expires", "group", "group_index", "retries", "timelimit", "root_id"),
        *("parent_id", "argsrepr", "kwargsrepr", "origin", "ignore_result", "replaced_task_nesting", "stamps"),
        "stamped_headers",
    )
)
#: Celery 5.7 marks the messages of beat.
_BEAT_HEADER = "celery_beat_task" in CelerysScheduler.apply_async.__code__.co_consts
_evaluated_args = celery.beat._evaluate_entry_args
_evaluated_kwargs = celery.beat._evaluate_entry_kwargs
_BASE, _AMQP, _TASK, _BEAT, _KOMBU = map(
    source_of, (celery.app.base, celery.app.amqp, celery.app.task, celery.beat, kombu.messaging)
)
_add_seconds = getattr(celery.utils.time, "add_seconds_to_datetime", lambda at, s: at + timedelta(seconds=s))
_NO_ARGS, _NO_KWARGS = saferepr(()), saferepr({})


class _Recorder:
    """A producer that notes what is published through it."""

    def __init__(self, producer: Any) -> None:
        self.published: list[tuple[Any, dict[str, Any]]] = []
        self._producer = producer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)

    def publish(self, body: Any, **kwargs: Any) -> Any:
        # A copy, for compressing and sending add headers of their own.
        self.published.append((body, dict(kwargs, headers=dict(kwargs["headers"]))))
        return self._producer.publish(body, **kwargs)


@dataclass(frozen=True, slots=True)
class _Template:
    """A message without id, arguments, `expires` and the entry's headers."""

    headers: dict[str, Any]
    embed: dict[str, Any]
    publish: dict[str, Any]
    queue: Any
    task: Any
    expires: float | None
    routes: Any


class _Declared:
    """A queue to be declared with a message, which is bound to a channel once and not for each message.

    kombu gets it unbound, as Celery gives it: a publish that is retried on a new channel binds it to that one.
    """

    is_bound = False

    def __init__(self, queue: Any) -> None:
        self.queue = queue
        self._bound: Any = None

    def bind(self, channel: Any) -> Any:
        if self._bound is None or self._bound.channel is not channel:
            self._bound = self.queue.bind(channel)
        return self._bound

    def __hash__(self) -> int:
        return hash(self.queue)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.queue, name)


class Templates:
    """The templates of one scheduler, for all threads that send for it; each producer belongs to one of them."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self._templates: dict[Any, _Template] = {}
        #: Whether something is overridden or patched, which is asked once in a turn of the scheduler, for all threads.
        #: By the id of a task or producer, and with it, so that no other gets its id. None: it is asked each time.
        self.answers: dict[int, tuple[Any, bool]] | None = None

    def key(self, scheduler: Any, entry: Any, producer: Any) -> Any:
        """Return what identifies the entry's kind of message, or None if it has to go Celery's own way."""
        if before_task_publish.receivers or after_task_publish.receivers or task_sent.receivers:
            return None
        task = self.app.tasks.get(entry.task)
        options: dict[str, Any] = entry.options
        given: tuple[Any, ...] = ()
        if not self._once(producer, lambda it: self._is_plain(scheduler, it)):
            return None
        if task is not None and not self._once(task, self._is_plain_task):
            return None
        if options:
            if not options.keys() <= _KNOWN:
                return None
            given = tuple([(name, type(value), value) for name, value in options.items() if name in ROUTING])
            if not all(kind in _PLAIN for _, kind, _ in given):
                return None
            headers = options.get("headers", {})
            if type(headers) is not dict or not _STANDARD.isdisjoint(headers):
                return None
        expires = _expires(options, task)
        if expires is not None and (type(expires) not in (int, float) or expires < 0):
            return None
        ignores = None if task is None else task.ignore_result
        return entry.task, task, given, expires, ignores, os.getpid()

    def get(self, key: Any) -> _Template | None:
        """Return the template for this kind of message, if there is one and routes and queue are still the same."""
        template = self._templates.get(key)
        if template is None:
            return None
        amqp = self.app.amqp
        if template.routes is amqp.routes and amqp.queues.get(template.queue.name) is template.queue:
            return template
        self._templates.pop(key, None)
        return None

    @contextmanager
    def recording(self, key: Any, producer: Any) -> Iterator[_Recorder]:
        """Send one message Celery's way, through the recorder, and keep it as the template."""
        recorder = _Recorder(producer)
        yield recorder
        if len(recorder.published) != 1:
            return
        body, publish = recorder.published[0]
        headers, queues = publish["headers"], publish.get("declare")
        if not (isinstance(body, tuple) and len(body) == 3 and not any(body[2].values())):
            return
        if not (queues and len(queues) == 1 and self.app.amqp.queues.get(queues[0].name) is queues[0]):
            return
        if headers["root_id"] != headers["id"] or headers["eta"] is not None:
            return
        if len(self._templates) >= TEMPLATES:
            self._templates.clear()
        self._templates[key] = _Template(
            headers={name: value for name, value in headers.items() if name in _STANDARD},
            embed=body[2],
            publish=publish,
            queue=queues[0],
            task=key[1],
            expires=key[3],
            routes=self.app.amqp.routes,
        )

    def send(self, template: _Template, entry: Any, producer: Any) -> Any:
        """Send a message of this kind; return an `AsyncResult`. Blocks and raises as `Task.apply_async` does."""
        app, task, options = self.app, template.task, entry.options
        args = _evaluated_args(entry.args)
        kwargs = _evaluated_kwargs(entry.kwargs)
        if task is not None and task.typing:
            task.__header__(*args, **kwargs)
        task_id = options.get("task_id") or uuid()
        body = args or (), kwargs or {}, template.embed
        headers = dict(template.headers)
        headers["id"] = headers["root_id"] = task_id
        headers["argsrepr"] = self._repr(body[0], app.amqp.argsrepr_maxsize) if args else _NO_ARGS
        headers["kwargsrepr"] = self._repr(body[1], app.amqp.kwargsrepr_maxsize) if kwargs else _NO_KWARGS
        if template.expires is not None:
            at: datetime = maybe_make_aware(_add_seconds(app.now(), template.expires), tz=app.timezone)
            headers["expires"] = at.isoformat()
        own = options.get("headers")
        if _BEAT_HEADER:
            own = {} if own is None else own
            own["celery_beat_task"] = True  # in the entry's own dict, as Celery does
        if own:
            headers.update(own)
        publish = dict(template.publish, headers=headers, correlation_id=task_id, reply_to=app.thread_oid)
        ignores = headers["ignore_result"]
        with producer.connection._reraise_as_library_errors():
            if not ignores:
                app.backend.on_task_call(producer, task_id)
            known: dict[str, _Declared] = vars(producer).setdefault("neli_declared", {})
            declared = known.get(template.queue.name)
            if declared is None or declared.queue is not template.queue:
                declared = known[template.queue.name] = _Declared(template.queue)
            publish["declare"] = [declared]
            producer.publish(body, **publish)
        result = (app if task is None else task).AsyncResult(task_id)
        result.ignored = ignores
        return result

    def _repr(self, value: Any, length: int) -> str:
        conf = self.app.conf
        levels = {"maxlevels": conf.task_repr_maxlevels} if "task_repr_maxlevels" in conf else {}
        shown: str = saferepr(value, length, **levels)
        return shown

    def _once(self, subject: Any, ask: Callable[[Any], bool]) -> bool:
        answers = self.answers
        if answers is None:
            return ask(subject)
        known = answers.get(id(subject))
        if known is None:
            known = answers[id(subject)] = subject, ask(subject)
        return known[1]

    def _is_plain(self, scheduler: Any, producer: Any) -> bool:
        app = self.app
        amqp, conf = app.amqp, app.conf
        return (
            not conf.task_always_eager
            and not conf.task_send_sent_event
            and app.current_worker_task is None
            and is_unpatched(CelerysScheduler, "apply_async", _BEAT)
            and is_unpatched(scheduler, "send_task", _BEAT)
            and is_unpatched(app, "send_task", _BASE)
            and is_unpatched(amqp, "send_task_message", _AMQP)
            and is_unpatched(amqp, "create_task_message", _AMQP)
            and amqp.create_task_message.__name__ == "as_task_v2"
            and is_unpatched(producer, "publish", _KOMBU)
            and all(type(router) is MapRoute for router in amqp.routes)
            and type(amqp.router) is Router
        )

    def _is_plain_task(self, task: Any) -> bool:
        return (
            is_unpatched(task, "apply_async", _TASK)
            and is_unpatched(task, "shadow_name", _TASK)
            and is_unpatched(task, "AsyncResult", _TASK)
            and not getattr(task, "__v2_compat__", False)
            and getattr(task, "_dump_pydantic_arguments", None) is None
            and task._get_app() is self.app
        )


def keep_client(producer: Any) -> None:
    """Let the channel of a kombu producer keep its client, if it is kombu's own to Redis, with nothing overridden.

    kombu makes a `redis.Redis` object for every command, which takes longer than everything else between a message and
    its way out, and has no state but a pool of connections. Any number of times; never blocks, and does not connect: a
    producer that has no channel yet is left alone. For the thread that uses the producer.
    """
    transport = sys.modules.get("kombu.transport.redis")
    channel = getattr(producer, "_channel", None)  # `channel` would connect, outside Celery's own retries
    if transport is None or not isinstance(channel, transport.Channel) or "_create_client" in vars(channel):
        return
    if not is_unpatched(channel, "_create_client", source_of(transport)):
        return
    make = channel._create_client
    kept: Any = None

    def create_client(asynchronous: bool = False) -> Any:
        nonlocal kept
        if asynchronous:
            return make(asynchronous=True)
        if kept is None or kept.connection_pool is not channel.pool:  # a disconnect replaces the pool
            kept = make()
        return kept

    channel._create_client = create_client


def publish_below(scheduler: Any, entry: Any, producer: Any) -> Any:
    """Send an entry as Celery's `Scheduler.apply_async` does, but not through it.

    Instrumentation around that method has seen this slot, and has added its headers to the entry. Blocks and raises as
    `Task.apply_async` does.
    """
    task = scheduler.app.tasks.get(entry.task)
    options = dict(entry.options)
    if _BEAT_HEADER:
        options["headers"] = dict(options.get("headers") or {}, celery_beat_task=True)
    args, kwargs = _evaluated_args(entry.args), _evaluated_kwargs(entry.kwargs)
    if task is None:
        return scheduler.send_task(entry.task, args, kwargs, producer=producer, **options)
    return task.apply_async(args, kwargs, producer=producer, **options)


def _expires(options: Any, task: Any) -> Any:
    if "expires" in options:
        return options["expires"]
    return None if task is None else task._get_exec_options().get("expires")
