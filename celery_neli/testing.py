"""Help for the tests of applications that use celery-neli; nothing else in the package imports this module, or pytest.

In a ``conftest.py``: ``pytest_plugins = ["celery_neli.testing"]``, or import the fixtures from here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from celery_neli.embedded import EmbeddedKafka

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["embedded_kafka"]


@pytest.fixture
def embedded_kafka() -> Iterator[EmbeddedKafka]:
    """A new :class:`~celery_neli.embedded.EmbeddedKafka` of one broker, which ends with the test (milliseconds)."""
    with EmbeddedKafka() as kafka:
        yield kafka
