"""What the sender of a stream of tasks and those who watch it know alike."""

from __future__ import annotations

LONG = 20.0
"""How much longer a long task takes than the others."""


def is_long(number: int) -> bool:
    """Whether the task of this number is long: one in twenty."""
    return number % 20 == 19
