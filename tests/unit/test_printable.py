"""Text that others wrote, made safe to print."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_neli.printable import MOST_CHARACTERS, printable


@given(st.one_of(st.text(st.characters(exclude_categories=())), st.binary()))
def test_whatever_was_written_is_one_line_that_any_terminal_takes(text: str | bytes) -> None:
    """No line break, no control character, nothing that cannot be encoded; and never longer than asked."""
    line = printable(text)
    assert line.isprintable()
    assert len(line) <= MOST_CHARACTERS
    io.TextIOWrapper(io.BytesIO(), encoding="utf-8").write(line)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("tidy up", "tidy up"),
        ("größer – 毎日", "größer – 毎日"),
        ("a\nERROR forged", "a\\nERROR forged"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\u202eb", "a\\u202eb"),
        ("a\u2028b", "a\\u2028b"),
        ("a\ud800b", "a\\ud800b"),
        (b"a\xffb", "a\\xffb"),
        (b"gr\xc3\xb6\xc3\x9fer", "größer"),
        (None, "None"),
    ],
)
def test_only_what_misleads_is_escaped(text: object, line: str) -> None:
    """Ordinary names in any language stay as they are."""
    assert printable(text) == line


def test_a_long_text_is_cut() -> None:
    """The line says so by an ellipsis, and a huge text costs no more than a short one."""
    assert printable("x" * 10_000_000, 10) == "x" * 9 + "…"
    assert printable("x" * 10, 10) == "x" * 10
    assert printable(b"\xff" * 10_000_000, 10) == "\\xff\\xff\\…"
