"""The project of the smoke tests; it exports prometheus-client's default registry itself, as many applications do."""

from __future__ import annotations

import os
from typing import Any

from celery.signals import beat_init, worker_ready
from prometheus_client import start_http_server

from tests.smoke.project import app

__all__ = ["app"]


@beat_init.connect
@worker_ready.connect
def export(**_: Any) -> None:
    start_http_server(int(os.environ["SMOKE_METRICS_PORT"]), addr="127.0.0.1")
