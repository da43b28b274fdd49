"""Refuse an ordinary beat where elected beats of the same group run: it would send each task a second time.

The `celery` command loads this with the plug-in, whatever scheduler its beat has. It asks Kafka once, when a beat
starts, and only where `neli_group` is set. Where only workers hold an election, one ordinary beat is right; several of
them are not, and each warns of that.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import click
from celery.signals import beat_init, celeryd_init

from celery_neli.config import Config, from_app, is_elected, is_replicated, not_read, scheduler_named
from celery_neli.exceptions import ConfigurationError, NeliError
from celery_neli.printable import closest, failure, printable

if TYPE_CHECKING:
    from celery_neli.status import ElectionStatus

PATIENCE: Final = 2.0  # seconds that Kafka has to answer
#: Options of an entry that say when it runs, which only our own scheduler knows.
WHEN_OPTIONS: Final = frozenset(
    ("neli_timezone", "neli_jitter", "neli_start", "neli_end", "neli_calendar", "neli_max_runs")
)
NAMES: Final = ("celery_neli.Scheduler", "celery_neli.ReplicatedScheduler")  # as users give them to `--scheduler`
LIKE: Final = 0.7  # how similar, from 0 to 1, a name that cannot be imported must be to count as a misspelling


def guard(beat: click.Command, worker: click.Command) -> None:
    """Let `celery beat` and `celery worker` in this process end with one line if a setting of ours is wrong, if a
    scheduler of ours is misspelt, or if an ordinary beat starts beside elected ones.
    """
    watch = OrdinaryBeat()
    beat_init.connect(watch.on_beat, weak=False, dispatch_uid="neli-ordinary-beat")
    celeryd_init.connect(watch.on_worker, weak=False, dispatch_uid="neli-ordinary-beat")
    for command in (beat, worker):
        in_one_line(command)


def in_one_line(command: click.Command) -> None:
    """Make the command end with one line if its scheduler is misspelt, or if a setting of ours is wrong."""
    run = command.callback
    assert run is not None

    @functools.wraps(run)
    def guarded(*arguments: Any, **options: Any) -> Any:
        try:
            if reason := misspelt(options.get("scheduler")):
                raise ConfigurationError(reason)
            return run(*arguments, **options)
        except ConfigurationError as exc:
            if options.get("logfile"):
                _write_to_logfile(click.get_current_context().obj.app, str(exc), options)
            raise failure(exc) from None

    command.callback = guarded


def misspelt(name: Any) -> str | None:
    """Return the reason to refuse a scheduler that does not exist and whose name resembles one of ours, else None."""
    if not isinstance(name, str) or name in NAMES or (close := closest(name, NAMES, least=LIKE)) is None:
        return None
    try:
        if isinstance(scheduler_named(name), type):
            return None
        reason = "it is not a class"
    except (ImportError, AttributeError, ValueError) as exc:
        reason = str(exc)
    return f"the scheduler {name!r} cannot be imported ({reason}); did you mean {close!r}?"


class OrdinaryBeat:
    """Receives Celery's signals of a starting beat. `look` asks Kafka for the state of the beat election, by default
    `status.look`; `patience` is the time that Kafka has to answer, in seconds.
    """

    def __init__(self, look: Callable[[Config], ElectionStatus] | None = None, *, patience: float = PATIENCE) -> None:
        self._look, self._patience = look, patience
        self._asked = False

    def on_beat(self, sender: Any, **_: Any) -> None:
        """End a starting `celery beat` with a line in its log if elected beats run. Blocks for 2 s at most."""
        if self._asked:
            return
        app, cls = sender.scheduler.app, type(sender.scheduler)
        _warn_of_group_not_read(app)
        _warn_of_options(app, cls)
        if reason := self._reason_against(app, cls):
            logger_of(__name__).critical("%s", reason)
            raise SystemExit(1)  # celery.signals swallows every Exception

    def on_worker(self, instance: Any, options: Any, sender: Any = None, **_: Any) -> None:
        """End a starting `celery worker -B` with a line if its beat, whose end it would not notice, must not run."""
        app = instance.app
        if not any(getattr(step, "__module__", "") == "celery_neli.worker.bootsteps" for step in app.steps["worker"]):
            _warn_of_group_not_read(app)  # with our steps, the worker ends with an error that says so
        if not options.get("beat"):
            return
        name = options.get("scheduler") or app.conf.beat_scheduler
        reason = misspelt(name)
        if reason is None:
            try:
                cls = scheduler_named(name)
            except (ImportError, AttributeError, ValueError):
                return  # Celery reports it
            reason = _refused_settings(app, cls) or self._reason_against(app, cls)
            self._asked = True  # the beat will be forked from this process
        if reason:
            _write_to_logfile(app, reason, {**options, "hostname": sender})
            raise SystemExit(f"Error: {reason}")

    def _reason_against(self, app: Any, cls: type[Any]) -> str | None:
        group = app.conf.get("neli_group")
        if not group or app.conf.get("neli_enabled") is False or is_elected(cls):
            return None
        found = self._ask(app)
        if found is None:
            return None
        leaders = [each.leader for each in found.roles if each.leader is not None]
        members = leaders or [each.name for each in found.members or () if each.answers]
        if not members:
            logger_of(__name__).warning(
                "beat: neli_group is set, but this beat has the scheduler %s.%s, which takes part in no election: if "
                "several such beats run, each of them sends every task. To elect one, start all of them with "
                "--scheduler celery_neli.Scheduler, or set beat_scheduler to that and leave --scheduler out",
                cls.__module__, cls.__qualname__,
            )  # fmt: skip
            return None
        named = ", ".join(map(printable, members[:3]))
        return (
            f"beat: this beat has the scheduler {cls.__module__}.{cls.__qualname__}, and elected beats of neli_group = "
            f"{group!r} run ({named}): each task would be sent twice. Start this beat with "
            "--scheduler celery_neli.Scheduler, stop the elected beats first, or give this beat a neli_group of its own"
        )

    def _ask(self, app: Any) -> ElectionStatus | None:
        """Return the state of the beat election. If Kafka does not answer, log a warning and return None."""
        from celery_neli.status import look  # loads confluent_kafka, which must not cost Kafka's time to answer
        from celery_neli.threads import spawn

        answers: list[ElectionStatus | str] = []

        def ask() -> None:
            try:
                config = from_app(app, "beat")
                answers.append(self._look(config) if self._look else look(config, "beat", log=logger_of(__name__)))
            except NeliError as exc:
                answers.append(str(exc))

        spawn(ask, name="neli-ask").join(self._patience)
        answer = answers[0] if answers else f"no answer within {self._patience:g} s"
        if not isinstance(answer, str):
            return answer
        logger_of(__name__).warning(
            "beat: elected beats of neli_group=%s may be running, which would send each task a second time: this beat "
            "could not ask Kafka and starts: %s",
            app.conf.neli_group, answer,
        )  # fmt: skip
        return None


def _refused_settings(app: Any, cls: type[Any]) -> str | None:
    if not any(each.__module__.startswith("celery_neli.") for each in cls.__mro__):
        return None
    try:
        made = cls(app, lazy=True)
        if is_elected(type(made)):
            made.neli_check()
    except ConfigurationError as exc:
        return str(exc)
    return None


def _warn_of_group_not_read(app: Any) -> None:
    if app.conf.get("neli_group") or app.namespace:
        return  # beside a namespace, another prefix may be that of another app
    if hint := not_read(app, "neli_group"):
        logger_of(__name__).warning("neli_group is not set, so this process takes part in no election: %s", hint)


def _warn_of_options(app: Any, cls: type[Any]) -> None:
    """Log one line if entries have options that say when they run, and this scheduler knows none of them."""
    entries = app.conf.beat_schedule
    if is_elected(cls) or is_replicated(cls) or not isinstance(entries, Mapping):
        return
    with_options = [(name, each["options"]) for name, each in entries.items()
                    if isinstance(each, Mapping) and isinstance(each.get("options"), Mapping)]  # fmt: skip
    found = [(name, option) for name, options in with_options for option in options if option in WHEN_OPTIONS]
    if found:
        names = sorted({str(name) for name, _ in found})
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        logger_of(__name__).warning(
            "beat: options=%s of entries=%s%s have no effect here: the scheduler %s.%s runs them by their schedules "
            "alone. Start this beat with --scheduler celery_neli.Scheduler, or take the options out",
            ",".join(sorted({option for _, option in found})), ",".join(map(printable, names[:3])), more,
            cls.__module__, cls.__qualname__,
        )  # fmt: skip


def _write_to_logfile(app: Any, line: str, options: Mapping[str, Any]) -> None:
    """Write the line with which a command ends to its log file, if it has one: a command that `celery multi` or
    `--detach` started has no terminal, and has not set up its logging yet.
    """
    if options.get("logfile"):
        app.log.setup_logging_subsystem(logfile=options["logfile"], hostname=options.get("hostname"))
        logger_of(__name__).critical("%s", line)


def logger_of(module: str) -> logging.Logger:
    """Return the logger of a module that every `celery` command imports: what escapes its lines is loaded only here."""
    from celery_neli.logs import escaping

    return escaping(logging.getLogger(module))
