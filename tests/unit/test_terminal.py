"""Lines on a terminal that others had a hand in."""

from __future__ import annotations

import errno
import io
import sys

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_neli.exceptions import NeliError
from celery_neli.printable import failure, say, say_json


@given(text=st.text(st.characters(exclude_categories=())), encoding=st.sampled_from(["ascii", "latin-1", "utf-8"]))
def test_any_text_is_one_line_in_any_encoding(text: str, encoding: str) -> None:
    """Strict streams, as PYTHONIOENCODING=ascii makes them, lose no line and raise nothing."""
    buffer, before = io.BytesIO(), sys.stdout
    stream = sys.stdout = io.TextIOWrapper(buffer, encoding=encoding, errors="strict")
    try:
        say(text)
        stream.flush()
    finally:
        sys.stdout = before
    line = buffer.getvalue().decode(encoding)
    assert line[-1] == "\n"
    assert line[:-1].isprintable()


def test_what_the_encoding_has_stays_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """On standard error as well."""
    say("größer 毎日")
    say("größer", err=True)
    assert capsys.readouterr() == ("größer 毎日\n", "größer\n")


class Full(io.StringIO):
    """A file on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_stream_that_takes_nothing_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that went away, such as `head`, is none of it: click ends the command without a line."""
    monkeypatch.setattr(sys, "stdout", Full())
    for prints in (say, say_json):
        with pytest.raises(click.ClickException, match=r"^cannot print: No space left on device$"):
            prints("[]")


def test_an_error_is_one_line() -> None:
    """Whatever name or reason is in it."""
    error = failure(NeliError("no entry 'a\nError: all is well\x1b[2J'"))
    assert (error.exit_code, error.message) == (1, "no entry 'a\\nError: all is well\\x1b[2J'")
