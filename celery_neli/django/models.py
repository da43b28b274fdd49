"""The model of an entry: it has no table, and gives the admin its address, its permissions and its log."""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn

from django.db import models

ELSEWHERE = "entries are kept in Kafka: use celery_neli.periodic"


class NoRows(models.Manager):
    """Finds nothing and asks no database, so that `dumpdata` and the like work without a table."""

    def get_queryset(self) -> Any:
        """Return an empty result."""
        return super().get_queryset().none()


class Entry(models.Model):
    """An entry of the schedule, by its name. What it is, `celery_neli.periodic` says."""

    name = models.CharField(max_length=255, primary_key=True)

    objects = NoRows()

    class Meta:
        """Django makes permissions for it when it migrates, but no table."""

        managed = False
        base_manager_name = "objects"
        verbose_name = "periodic task"
        verbose_name_plural = "periodic tasks"
        permissions: ClassVar = [
            ("pause_entry", "Can pause and resume a periodic task"),
            ("run_entry", "Can run a periodic task now"),
        ]

    def __str__(self) -> str:
        return str(self.name)

    def save(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse."""
        raise TypeError(ELSEWHERE)

    def delete(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse."""
        raise TypeError(ELSEWHERE)
