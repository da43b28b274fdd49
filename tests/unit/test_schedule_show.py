"""`celery neli schedule show`: the schedule of an entry as one may write it."""

from __future__ import annotations

from typing import Any

import pytest

from celery_neli.periodic.cli.entries import _text_of
from celery_neli.periodic.view import Periodic


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("PT5M", {}, "PT5M (every 5 min)"),
        ("0 9 * * *", {}, "0 9 * * *"),
        ("0 9 * * *", {"neli_timezone": "Europe/Berlin"}, "0 9 * * * (Europe/Berlin)"),
        ("cron:0 0 13 * fri", {}, "cron:0 0 13 * fri"),
        ("cron:0 0 13 * fri", {"neli_timezone": "Europe/Berlin"}, "cron:0 0 13 * fri (Europe/Berlin)"),
        ("CRON_TZ=Europe/Berlin 30 7 * * mon-fri", {}, "CRON_TZ=Europe/Berlin 30 7 * * mon-fri"),
    ],
)
def test_a_schedule_is_shown_once_and_with_its_time_zone(text: str, options: Any, expected: str) -> None:
    """A line of cron keeps its prefix, without which it may be a crontab; words follow only where they say more."""
    assert _text_of(Periodic(name="e", task="t", schedule=text, options=options)) == expected
