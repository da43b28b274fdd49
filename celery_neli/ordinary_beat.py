"""Keep an ordinary beat from starting where elected beats of the same group run: every task would be sent twice.

The `celery` command loads this with the plug-in (`cli.py`), whatever scheduler its beat has. It asks Kafka once, when a
beat starts, and only where `neli_group` is set. One ordinary beat beside workers that alone hold an election is right;
several of them are not, and each warns of that.
"""

from __future__ import annotations

import difflib
import functools
import logging
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from celery_neli.config import Config
    from celery_neli.status import ElectionStatus

__all__ = ["OrdinaryBeat", "check_scheduler", "guard", "misspelt"]

#: Seconds that Kafka has to answer.
PATIENCE: Final = 2.0
#: What `-S` is given to have celery-neli's schedulers.
NAMES: Final = ("celery_neli.Scheduler", "celery_neli.beat.scheduler:Scheduler", "celery_neli.ReplicatedScheduler")


def misspelt(name: Any) -> str | None:
    """Return the line with which a command refuses a scheduler that does not exist and that resembles one of
    celery-neli's; else None.
    """
    if not isinstance(name, str) or name in NAMES:
        return None
    close = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.8)
    if not close:
        return None
    try:
        if isinstance(_resolve(name), type):
            return None
        reason = "it is not a class"
    except (ImportError, AttributeError, ValueError) as exc:
        reason = str(exc)
    return f"the scheduler {name!r} cannot be imported ({reason}); did you mean {close[0]!r}?"


def check_scheduler(command: click.Command) -> None:
    """Let the command refuse a misspelt `--scheduler` (or `beat_scheduler`) of celery-neli's with one line."""
    for option in command.params:
        if option.name == "scheduler":
            option.callback = _checked(option.callback)


def _checked(callback: Any) -> Any:
    def check(ctx: click.Context, option: click.Parameter, value: Any) -> Any:
        found = value if callback is None else callback(ctx, option, value)
        line = misspelt(found)
        if line is not None:
            raise click.ClickException(line)
        return found

    return check


class OrdinaryBeat:
    """Receives Celery's signals of a starting beat. `look` asks Kafka for the beat election (default: the real one)."""

    def __init__(self, look: Callable[[Config], ElectionStatus] | None = None, *, patience: float = PATIENCE) -> None:
        self._look, self._patience = look or _look, patience
        self._asked = False

    def on_beat(self, sender: Any, **_: Any) -> None:
        """`celery beat` starts: end it with a line in its log if elected beats run. Blocks for 2 s at most."""
        line = None
        if not self._asked:
            scheduler = sender.scheduler
            _warn_of_a_setting_not_read(scheduler.app)
            line = self._why_not(scheduler.app, type(scheduler))
        if line is not None:
            _logger().critical("%s", line)
            raise SystemExit(1)  # celery.signals swallows what is no more than an Exception

    def on_worker(self, instance: Any, options: Any, sender: Any = None, **_: Any) -> None:
        """`celery worker` starts: end it with a line if the beat in it (`-B`) could not run, or if that is an ordinary
        one and elected beats run. The beat is a process of its own, whose end the worker does not notice.
        """
        app = instance.app
        if not any(step.__module__ == "celery_neli.worker.bootsteps" for step in app.steps["worker"]):
            _warn_of_a_setting_not_read(app)  # with our steps, the worker ends with an error that says so
        if not options.get("beat"):
            return
        name = options.get("scheduler") or app.conf.beat_scheduler
        line = misspelt(name)
        if line is None:
            try:
                cls = _resolve(name)
            except (ImportError, AttributeError, ValueError):
                return  # Celery says so
            line = _settings_refused(app, cls) or self._why_not(app, cls)
            self._asked = True  # the beat is a process that is forked from this one
        if line is not None:
            _note_in_logfile(app, line, {**options, "hostname": sender})
            raise SystemExit(f"Error: {line}")

    def _why_not(self, app: Any, cls: type[Any]) -> str | None:
        """Return why this beat must not start, None if it may."""
        if not app.conf.get("neli_group") or app.conf.get("neli_enabled") is False:
            return None
        if _is_elected(cls):
            return None
        found = self._ask(app)
        if found is None:
            return None
        from celery_neli.printable import printable

        leaders = [each.leader for each in found.roles if each.leader is not None]
        members = leaders or [each.name for each in found.members or () if each.answers]
        if not members:
            _logger().warning(
                "beat: neli_group is set, but this beat has the scheduler %s.%s, which takes part in no election: if "
                "several such beats run, each of them sends every task. To elect one, start all of them with "
                "--scheduler celery_neli.Scheduler, or set beat_scheduler to that and leave --scheduler out",
                cls.__module__, cls.__qualname__,
            )  # fmt: skip
            return None
        named = ", ".join(map(printable, members[:3]))
        return (
            f"beat: this beat has the scheduler {cls.__module__}.{cls.__qualname__}, and elected beats of neli_group = "
            f"{app.conf.neli_group!r} run ({named}): each task would be sent twice. Start this beat with "
            "--scheduler celery_neli.Scheduler, stop the elected beats first, or give this beat a neli_group of its own"
        )

    def _ask(self, app: Any) -> ElectionStatus | None:
        """What Kafka tells of the beat election, None if it does not answer, which is logged."""
        import celery_neli.status  # noqa: F401 - it loads confluent_kafka, which is none of the time that Kafka has
        from celery_neli.config import from_app
        from celery_neli.exceptions import NeliError
        from celery_neli.threads import spawn

        answers: list[ElectionStatus] = []
        reasons: list[str] = []

        def ask() -> None:
            try:
                answers.append(self._look(from_app(app, "beat")))
            except NeliError as exc:
                reasons.append(str(exc))

        spawn(ask, name="neli-ask").join(self._patience)
        if answers:
            return answers[0]
        _logger().warning(
            "beat: elected beats of neli_group=%s may be running, which would send each task a second time: this beat "
            "could not ask Kafka and starts: %s",
            app.conf.neli_group, reasons[0] if reasons else f"no answer within {self._patience:g} s",
        )  # fmt: skip
        return None


def _is_elected(cls: type[Any]) -> bool:
    return any(each.__module__ == "celery_neli.beat.scheduler" for each in cls.__mro__)


def _settings_refused(app: Any, cls: type[Any]) -> str | None:
    """Return why a scheduler of celery-neli's cannot run with the app's settings, None if it can."""
    if not any(each.__module__.startswith("celery_neli.") for each in cls.__mro__):
        return None
    from celery_neli.exceptions import ConfigurationError

    try:
        made = cls(app, lazy=True)
        if _is_elected(type(made)):
            made.neli_check()
    except ConfigurationError as exc:
        return str(exc)
    return None


def _in_one_line(run: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(run)
    def command(*arguments: Any, **options: Any) -> Any:
        from celery_neli.exceptions import ConfigurationError
        from celery_neli.printable import failure

        try:
            return run(*arguments, **options)
        except ConfigurationError as exc:
            _note_in_logfile(click.get_current_context().obj.app, str(exc), options)
            raise failure(exc) from None

    return command


def _note_in_logfile(app: Any, line: str, options: Mapping[str, Any]) -> None:
    """Write the line with which a command ends into its log file, if it has one: one that was started by `celery
    multi` or with `--detach` has no terminal, and has not set up its logging yet.
    """
    if options.get("logfile"):
        app.log.setup_logging_subsystem(logfile=options["logfile"], hostname=options.get("hostname"))
        _logger().critical("%s", line)


def _warn_of_a_setting_not_read(app: Any) -> None:
    """Say that the group is given under a name that Celery does not read: the process takes part in no election."""
    if app.conf.get("neli_group") or getattr(app, "namespace", None):
        return  # with a namespace, another one may be that of another app
    from celery_neli.config import not_read

    hint = not_read(app, "neli_group")
    if hint is not None:
        _logger().warning("neli_group is not set, so this process takes part in no election: %s", hint)


def guard(beat: click.Command, worker: click.Command) -> None:
    """Watch over the commands `celery beat` and `celery worker` of this process: a setting of ours that is wrong ends
    them with one line, and so do the mistakes that are told above.
    """
    from celery.signals import beat_init, celeryd_init

    watch = OrdinaryBeat()
    beat_init.connect(watch.on_beat, weak=False, dispatch_uid="neli-ordinary-beat")
    celeryd_init.connect(watch.on_worker, weak=False, dispatch_uid="neli-ordinary-beat")
    for command in (beat, worker):
        check_scheduler(command)
        assert command.callback is not None
        command.callback = _in_one_line(command.callback)


def _look(config: Config) -> ElectionStatus:
    from celery_neli.status import look

    return look(config, "beat", log=_logger())


def _resolve(name: Any) -> Any:
    from celery.utils.imports import load_extension_class_names, symbol_by_name

    return symbol_by_name(name, aliases=dict(load_extension_class_names("celery.beat_schedulers")))


def _logger() -> logging.Logger:
    from celery_neli.logs import escaping

    return escaping(logging.getLogger(__name__))
