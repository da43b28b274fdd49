"""The README says what the code does."""

from __future__ import annotations

from pathlib import Path

from celery_neli import config

README = Path(__file__).parents[2] / "README.md"


def test_settings_table() -> None:
    """The README holds the table of settings exactly as `python -m celery_neli.config` prints it."""
    assert config.table().strip() in README.read_text(encoding="utf-8")
