"""What somebody meant who wrote a name that does not exist."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["meant", "nearest", "similar"]


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the one of the ``known`` names, of which there is at least one, that looks most like ``name``."""
    return difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.0)[0]


def similar(name: str, known: Iterable[str], *, least: float) -> str | None:
    """Return the one of the ``known`` names that looks most like ``name``; None if their likeness (0 to 1) is below
    ``least``.
    """
    return next(iter(difflib.get_close_matches(name, sorted(known), n=1, cutoff=least)), None)


def meant(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about a name that does not exist: what it may have meant, else all that there is."""
    near = similar(name, known, least=0.6)
    return f"did you mean {near}?" if near else f"there are {', '.join(sorted(known))}"
