"""What somebody meant who wrote a name that does not exist."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["nearest", "similar"]


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the one of the ``known`` names, of which there is at least one, that looks most like ``name``."""
    return difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.0)[0]


def similar(name: str, known: Iterable[str], *, least: float) -> str | None:
    """Return the one of the ``known`` names that looks most like ``name``; None if their likeness (0 to 1) is below
    ``least``.
    """
    return next(iter(difflib.get_close_matches(name, sorted(known), n=1, cutoff=least)), None)
