"""Calendars: days on which an entry does not run, or on which alone it runs (`neli_calendar`).

A calendar is the public holidays of some places, by the library `holidays`, or a function of an application that says
of a day whether it belongs to the calendar. Each day is asked about once in a process. Nothing blocks, but for as long
as an application's function does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import date
from functools import lru_cache
from importlib import import_module
from typing import Any, Final

from celery_neli.exceptions import ConfigurationError
from celery_neli.logs import LogLimit, escaping
from celery_neli.printable import closest, printable_error, shown

HOLIDAYS: Final = "holidays:"
LANGUAGE: Final = "en_US"  # of their names, where there are any in it; without, each host would have its own
SKIP, ONLY = "skip", "only"
DAYS: Final = 4096  # that a calendar remembers
SLOW: Final = 1.0  # seconds after which an answer is logged as slow
SAID_EVERY: Final = 3600.0  # seconds between two lines about one calendar

logger = escaping(logging.getLogger(__name__))


class Calendar:
    """Says which days the slots of an entry may be on. For any thread.

    Args:
        name: How it is shown: ``holidays:DE-BY``, or the name of a function.
        names: Returns what a day is in the calendar, such as the name of a holiday, or True; anything false if it is
            not in it. If it raises, the day counts as one that is not in the calendar: with `skip` the slot runs, with
            `only` it does not. Each day is asked about once, and a day of which it raised again.
        only: Slots run on its days, and on no others; otherwise they run on all other days.
    """

    def __init__(self, name: str, names: Callable[[date], Any], *, only: bool = False) -> None:
        self.name, self.only, self._ask = name, only, names
        self._said = LogLimit(SAID_EVERY)
        self._known = lru_cache(maxsize=DAYS)(self._answer)

    @property
    def mode(self) -> str:
        """`skip` or `only`."""
        return ONLY if self.only else SKIP

    def lets(self, day: date) -> bool:
        """Return whether slots run on this day."""
        return (self.named(day) is not None) == self.only

    def named(self, day: date) -> str | None:
        """Return what the day is in the calendar, None if it is not in it."""
        began = time.monotonic()
        try:
            found = self._known(day)
        except Exception as exc:  # noqa: BLE001 - an application's function may raise anything
            if self._said.allows("raised"):
                logger.error(
                    "schedule: calendar=%s raised for day=%s: %s; the day counts as one that is not in it, so with "
                    "mode=%s its slots %s", self.name, day, printable_error(exc), self.mode,
                    "do not run" if self.only else "run",
                )  # fmt: skip
            return None
        if (took := time.monotonic() - began) > SLOW and self._said.allows("slow"):
            logger.warning(
                "schedule: calendar=%s took %.1f s for day=%s: while it thinks, no task is sent; let it answer from "
                "memory", self.name, took, day,
            )  # fmt: skip
        return found

    def _answer(self, day: date) -> str | None:
        found = self._ask(day)
        return (found if isinstance(found, str) else self.name) if found else None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Calendar) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash((self.name, self.only))

    def _key(self) -> tuple[Any, ...]:
        # Each calendar of holidays has functions of its own.
        return self.name, self.only, None if self.name.startswith(HOLIDAYS) else self._ask

    def __reduce__(self) -> tuple[Any, ...]:
        if self.name.startswith(HOLIDAYS):
            return holidays, (self.name, self.only)
        return _again, (self.name, self._ask, self.only)

    def __repr__(self) -> str:
        return f"<calendar: {self.mode} {self.name}>"


def _again(name: str, names: Callable[[date], Any], only: bool) -> Calendar:
    return Calendar(name, names, only=only)


@lru_cache(maxsize=256)  # the holidays of a year are computed once for all entries
def holidays(name: str, only: bool = False) -> Calendar:
    """Return the calendar of the public holidays of the places that ``holidays:DE-BY,AT`` names.

    Raises:
        ConfigurationError: A place is not known, or the library is missing.
    """
    try:
        library = import_module("holidays")
    except ImportError:
        raise ConfigurationError('needs the library holidays: pip install "celery-neli[calendars]"') from None
    places = [each.strip() for each in name[len(HOLIDAYS) :].split(",")]
    found = [_place(library, each) for each in places]

    def names(day: date) -> str | None:
        return next((str(each) for each in (place.get(day) for place in found) if each), None)

    return Calendar(HOLIDAYS + ",".join(place.upper() for place in places), names, only=only)


def _place(library: Any, code: str) -> Any:
    """Return the holidays of ``DE``, of ``DE-BY``, or of a stock exchange, ``XNYS``."""
    country, _, part = code.upper().partition("-")
    countries, exchanges = library.list_supported_countries(), library.list_supported_financial()
    if country in exchanges and not part:
        return library.financial_holidays(country, language=LANGUAGE)
    if country not in countries:
        near = closest(country, [*countries, *exchanges], least=0.6) if country else None
        hint = f"did you mean {near}?" if near else "give the code of a country, such as DE, or DE-BY for a part of it"
        raise ConfigurationError(f"the library holidays knows no place {shown(code)}; {hint}")
    if part and part not in {each.upper() for each in countries[country]}:
        parts = ", ".join(sorted(countries[country])) or "none"
        raise ConfigurationError(f"{country} has no part {shown(part)}; it has {parts}")
    known = next((each for each in countries[country] if each.upper() == part), None)
    return library.country_holidays(country, subdiv=known, language=LANGUAGE)
