"""`celery neli schedule …`: the runtime schedule from the command line.

Every `celery` command imports this package, so what reads the schedule is loaded when one of its own commands runs.
"""

from __future__ import annotations

from celery_neli.periodic.cli import as_code, entries, pauses, slots, transfer  # noqa: F401 - their commands
from celery_neli.periodic.cli.base import UNLED, Command, schedule

__all__ = ["UNLED", "Command", "schedule"]
