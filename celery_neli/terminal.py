"""Print lines to a terminal that is not harmed by what others wrote, and that may lack characters."""

from __future__ import annotations

import sys
from typing import Final

import click

from celery_neli.printable import printable

__all__ = ["failure", "say", "say_json"]

LONGEST_LINE: Final = 10_000


def say(line: str, *, err: bool = False) -> None:
    """Print one line to standard output, or to standard error with `err`.

    Whatever could begin another line or control the terminal is escaped, and so are characters that the encoding of
    the stream does not have. Raises `ClickException`, in one line, if the stream takes nothing, such as a file on a
    full disk; a reader that went away ends the command without a line, as click has it.
    """
    encoding = getattr(sys.stderr if err else sys.stdout, "encoding", None) or "utf-8"
    text = printable(line, LONGEST_LINE)
    _echo(text.encode(encoding, "backslashreplace").decode(encoding), err=err)


def say_json(text: str) -> None:
    """Print what `json.dumps` made, which is ASCII, of any length. Raises as `say`."""
    _echo(text, err=False)


def _echo(text: str, *, err: bool) -> None:
    try:
        click.echo(text, err=err)
    except BrokenPipeError:
        raise
    except OSError as exc:
        raise click.ClickException(f"cannot print: {exc.strerror or exc}") from None


def failure(error: BaseException) -> click.ClickException:
    """Return what ends a command with exit status 1 and the error as one line."""
    return click.ClickException(printable(str(error), LONGEST_LINE))
