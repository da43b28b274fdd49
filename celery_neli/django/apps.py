"""The app for Django's `INSTALLED_APPS`."""

from __future__ import annotations

from django.apps import AppConfig

from celery_neli.django import celery_app


class NeliConfig(AppConfig):
    """The runtime schedule of Celery."""

    name = "celery_neli.django"
    label = "celery_neli"
    verbose_name = "Celery schedule"

    def ready(self) -> None:
        """Note which Celery app is the current one, while the thread runs that imported the project."""
        celery_app.remember()
