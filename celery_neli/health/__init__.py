"""Health of a process: for probes over HTTP (`neli_http`) and for `celery neli health`, which needs no HTTP.

`vitals` knows what must move and sees if it does. `server` and `pages` answer probes; `notes` keeps a file up to date
that `survey` reads in another process, with the help of `directory` and `processes`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from celery import Celery

    from celery_neli.election.leadership import Leadership
    from celery_neli.health.part import HealthPart


def start(app: Celery, leadership: Leadership) -> HealthPart | None:
    """Start what shows the health of this process; None if `neli_http` and `neli_health_dir` switch both off. Waits for
    nothing. Raises `ConfigurationError`.
    """
    from celery_neli.health.part import HealthPart

    part = HealthPart.of(app, leadership)
    if part is not None:
        part.start()
    return part
