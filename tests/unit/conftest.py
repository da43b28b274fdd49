"""Fixtures of the unit tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit import django_site, schedulers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def django_tables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The tables of Django's admin and of django-celery-beat on SQLite."""
    django_site.configure(tmp_path_factory.mktemp("django"))
    yield
    from django.db import connections

    connections.close_all()


@pytest.fixture(params=["celery", "persistent", "database", "redbeat"])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> schedulers.Kind:
    """Each wrapped scheduler in turn."""
    return make_kind(request, tmp_path, request.param)


def make_kind(request: pytest.FixtureRequest, tmp_path: Path, name: str) -> schedulers.Kind:
    if name == "database":
        request.getfixturevalue("django_tables")
    classes = {
        "celery": schedulers.Kind,
        "persistent": schedulers.Persistent,
        "database": schedulers.Database,
        "redbeat": schedulers.RedBeat,
    }
    return classes[name](tmp_path, request.getfixturevalue("redis_url") if name == "redbeat" else None)


@pytest.fixture
def persistent(request: pytest.FixtureRequest, tmp_path: Path) -> schedulers.Kind:
    """Celery's scheduler with a file."""
    return make_kind(request, tmp_path, "persistent")


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> schedulers.Kind:
    """django-celery-beat's scheduler."""
    return make_kind(request, tmp_path, "database")


@pytest.fixture
def redbeat(request: pytest.FixtureRequest, tmp_path: Path) -> schedulers.Kind:
    """RedBeat's scheduler."""
    return make_kind(request, tmp_path, "redbeat")
