"""Print lines to a terminal that is not harmed by what others wrote, and that may lack characters."""

from __future__ import annotations

import sys
from typing import Final

import click

from celery_neli.printable import printable

__all__ = ["failure", "say"]

LONGEST_LINE: Final = 10_000


def say(line: str, *, err: bool = False) -> None:
    """Print one line to standard output, or to standard error with `err`.

    Whatever could begin another line or control the terminal is escaped, and so are characters that the encoding of
    the stream does not have. Raises `OSError` if the stream is closed.
    """
    encoding = getattr(sys.stderr if err else sys.stdout, "encoding", None) or "utf-8"
    text = printable(line, LONGEST_LINE)
    click.echo(text.encode(encoding, "backslashreplace").decode(encoding), err=err)


def failure(error: BaseException) -> click.ClickException:
    """Return what ends a command with exit status 1 and the error as one line."""
    return click.ClickException(printable(str(error), LONGEST_LINE))
