"""Fixtures for the tests of applications that use celery-neli. Nothing else in the package imports this, or pytest.

Write ``pytest_plugins = ["celery_neli.testing"]`` in a ``conftest.py``, or import the fixtures from here.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from celery_neli.embedded import EmbeddedKafka


@pytest.fixture
def embedded_kafka() -> Iterator[EmbeddedKafka]:
    """Start a new :class:`~celery_neli.embedded.EmbeddedKafka` of one broker (milliseconds). It ends with the test."""
    with EmbeddedKafka() as kafka:
        yield kafka
