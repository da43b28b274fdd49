"""The scheduler classes that beats and settings name, and of what kind each is: the names of its bases tell, so that
nothing is imported to ask.
"""

from __future__ import annotations

from typing import Any, Final

from celery.utils.imports import load_extension_class_names, symbol_by_name

from celery_neli.exceptions import ConfigurationError
from celery_neli.printable import closest, shown
from celery_neli.settings import SETTINGS

#: The scheduler that runs if `neli_scheduler` is not set.
DEFAULT: Final[str] = SETTINGS["neli_scheduler"].default
REMEDY = f"give a class or its path, such as {DEFAULT!r}, or leave it out"
#: The schedulers that a misspelt name may have meant.
KNOWN = (
    DEFAULT,
    "celery.beat.Scheduler",
    "celery.beat.PersistentScheduler",
    "django_celery_beat.schedulers:DatabaseScheduler",
    "redbeat.RedBeatScheduler",
)


def named(name: Any) -> Any:
    """Return what ``name`` stands for: a dotted path, an alias (entry point), or the class itself. Raises what its
    import raises, and `AttributeError` or `ValueError` if there is no such name.
    """
    return symbol_by_name(name, aliases=dict(load_extension_class_names("celery.beat_schedulers")))


def resolve(name: Any) -> type[Any]:
    """Return the scheduler class that the setting `neli_scheduler` names; None: the default. Imports it. Raises
    `ConfigurationError` if it is no scheduler, or `celery_neli.Scheduler` itself.
    """
    try:
        cls = named(DEFAULT if name is None else name)
    except Exception as exc:  # the import runs the user's modules
        near = closest(str(name), KNOWN, least=0.8)
        hint = REMEDY if near in (None, name) else f"did you mean {near!r}?"
        raise ConfigurationError(f"neli_scheduler = {shown(name)} cannot be imported: {shown(exc)}; {hint}") from exc
    if not (isinstance(cls, type) and derives_from(cls, "celery.beat", "Scheduler")):
        remedy = f"is django-celery-beat installed? Otherwise {REMEDY}" if name == "django" else REMEDY
        raise ConfigurationError(f"neli_scheduler = {shown(name)} is not a subclass of celery.beat.Scheduler; {remedy}")
    if is_elected(cls):
        raise ConfigurationError(
            f"neli_scheduler = {shown(name)} is celery-neli's own scheduler: name the one that it is to lead, such as"
            f" 'celery.beat.Scheduler' (beat_scheduler is the setting for celery-neli's)"
        )
    return cls


def is_elected(cls: type[Any]) -> bool:
    """Return True if ``cls`` is `celery_neli.Scheduler` or derives from it."""
    return derives_from(cls, "celery_neli.beat.scheduler", "Scheduler")


def is_replicated(cls: type[Any]) -> bool:
    """Return True if ``cls`` is `celery_neli.ReplicatedScheduler` or derives from it."""
    return derives_from(cls, "celery_neli.beat.replicated.standalone", "ReplicatedScheduler")


def derives_from(cls: type[Any], module: str, name: str) -> bool:
    """Return True if ``module.name`` is ``cls`` or among its bases. Imports nothing."""
    return any(base.__module__ == module and base.__name__ == name for base in cls.__mro__)
