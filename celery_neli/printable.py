"""Make text that others wrote safe to print: record keys, entry names, tasks, authors and member names."""

from __future__ import annotations

from typing import Final

__all__ = ["MOST_CHARACTERS", "printable", "printable_error"]

MOST_CHARACTERS: Final = 200


def printable(text: object, most: int = MOST_CHARACTERS) -> str:
    r"""Return ``text`` as one line of at most ``most`` characters that no terminal or log file can misread.

    Line breaks, control characters, escape sequences, marks that change the direction of text and lone surrogates are
    written as Python escapes (``\n``, ``\x1b``, ``\u202e``, ``\ud800``); all other characters stay as they are.
    Bytes are read as UTF-8, and bytes that are not UTF-8 become escapes, too. A longer text ends in ``…``. Never
    raises for text and bytes; any other object is shown by its ``repr``.
    """
    if isinstance(text, (bytes, bytearray)):
        line = bytes(text[: 4 * most + 4]).decode("utf-8", "backslashreplace")
    else:
        line = text if isinstance(text, str) else repr(text)
    line = line[: most + 1]
    if not line.isprintable():
        line = "".join(each if each.isprintable() else _escaped(each) for each in line)
    return line if len(line) <= most else f"{line[: most - 1]}…"


def printable_error(error: BaseException, most: int = MOST_CHARACTERS) -> str:
    """Return the type of the error and its message, in one line of at most ``most`` characters."""
    return printable(f"{type(error).__name__}: {error}", most)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
