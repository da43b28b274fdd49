"""Import this module for its effect: `imports = ["celery_neli.auto"]` in the configuration installs celery-neli."""

from __future__ import annotations

from celery import current_app

from celery_neli.worker.bootsteps import install

install(current_app._get_current_object())  # noqa: SLF001 - Celery's own name for the app behind the proxy
