"""Make text safe to show: escape what others wrote, hide secrets, and print lines to a terminal."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import click

MOST_CHARACTERS: Final = 200
LONGEST_LINE: Final = 10_000

HIDDEN: Final = "***"
PUBLIC: Final = ("bootstrap.servers", "client.id", "security.protocol", "sasl.mechanism", "sasl.mechanisms")
_SECRET = re.compile(
    r"pass|secret|token(?!\.endpoint|_refresh)|jaas|\.key\b(?!\.(?:location|file))|key\.pem|oauthbearer\.config"
    r"|credential(?!s\.client\.id)",
    re.IGNORECASE,
)
# Celery itself knows TOKEN, KEY, SECRET and PASS.
_ALSO_HIDDEN = r"JAAS|\bPEM\b|OAUTHBEARER\.CONFIG|CREDENTIAL|NELI_WEBHOOK|NELI_HEALTHCHECKS"


def printable(text: object, most: int = MOST_CHARACTERS) -> str:
    r"""Return ``text`` as one line of at most ``most`` characters that no terminal or log file can misread.

    Line breaks, control characters, marks that change the direction of text, lone surrogates and bytes that are not
    UTF-8 become Python escapes (``\n``, ``\x1b``, ``\u202e``, ``\ud800``, ``\xff``). A longer text ends in ``…``. Text
    and bytes never raise; any other object is shown by its ``repr``.
    """
    if isinstance(text, (bytes, bytearray)):
        text = bytes(text[: 4 * most + 4]).decode("utf-8", "backslashreplace")
    line = (text if isinstance(text, str) else repr(text))[: most + 1]
    if not line.isprintable():
        line = "".join(
            each if each.isprintable() else each.encode("unicode_escape", "surrogatepass").decode() for each in line
        )
    return line if len(line) <= most else f"{line[: most - 1]}…"


def printable_error(error: BaseException, most: int = MOST_CHARACTERS) -> str:
    """Return the type of the error and its message, in one line of at most ``most`` characters."""
    return printable(f"{type(error).__name__}: {error}", most)


def shown(value: object) -> str:
    """Return the value as errors show it: its `repr`, on one line of at most 200 characters. Never raises."""
    try:
        return printable(repr(value))
    except Exception:  # noqa: BLE001 - a class may have any `repr`, and lists may be nested too deeply for it
        return f"<{type(value).__name__}>"


def closest(name: str, known: Iterable[str], *, least: float = 0.0) -> str | None:
    """Return the known name that looks most like `name`, whatever its case; None if no likeness (0 to 1) is `least`."""
    by_folded = {each.casefold(): each for each in sorted(known)}
    found = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=least)
    return by_folded[found[0]] if found else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about an unknown name: the known one that it resembles, else all known ones."""
    found = closest(name, known, least=0.6)
    return f"did you mean {found}?" if found else f"there are {', '.join(sorted(known))}"


class Masked(dict[str, Any]):
    """Properties whose `repr` shows names and public values only: a traceback's locals may be printed."""

    def __repr__(self) -> str:
        return repr({name: value if name in PUBLIC else HIDDEN for name, value in self.items()})


def is_secret(name: str) -> bool:
    """Return True if the property `name` holds a password, a key or a token."""
    return _SECRET.search(name) is not None


def without_secrets(value: Any) -> Any:
    """Return the value, a list or a dict without what its names say are secrets."""
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if isinstance(key, str) and is_secret(key) else without_secrets(each)
            for key, each in value.items()
        }
    return [without_secrets(each) for each in value] if isinstance(value, (list, tuple)) else value


def secrets_of(properties: Mapping[str, Any]) -> list[str]:
    """Return the values that must never be shown, the longest first; up to three characters occur in any text."""
    found: set[str] = set()
    for name, value in properties.items():
        if is_secret(name):
            for text in _texts(value):
                # librdkafka quotes sasl.oauthbearer.config from the first word that it does not understand.
                words = text.split() if name == "sasl.oauthbearer.config" else []
                found |= {text, *words, *(word.partition("=")[2] for word in words)}
    return sorted((value for value in found if len(value) > 3), key=len, reverse=True)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, (Mapping, list, tuple, set, frozenset)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(each)
    elif isinstance(value, (bytes, bytearray)):
        yield value.decode(errors="replace")
    elif value is not None and not callable(value):
        yield str(value)


def masked(text: str, secrets: Iterable[str]) -> str:
    """Return `text` without the `secrets`, of which longer ones come first."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return text


def hide_from_reports() -> None:
    """Make `celery report` and `celery inspect conf`, which know a secret by its name, hide ours, too."""
    from celery.app import utils  # an election needs no Celery

    pattern = utils.HIDDEN_SETTINGS.pattern
    if _ALSO_HIDDEN not in pattern:
        utils.HIDDEN_SETTINGS = re.compile(f"{pattern}|{_ALSO_HIDDEN}", utils.HIDDEN_SETTINGS.flags)


def say(line: str, *, err: bool = False) -> None:
    """Print one line to standard output, or to standard error with `err`; raise `ClickException` if a disk is full.

    It escapes what could begin another line or control the terminal, and characters that the encoding of the stream
    lacks. If the reader of a pipe has gone, click ends the command without a line.
    """
    encoding = getattr(sys.stderr if err else sys.stdout, "encoding", None) or "utf-8"
    text = printable(line, LONGEST_LINE)
    _echo(text.encode(encoding, "backslashreplace").decode(encoding), err=err)


def say_json(text: str) -> None:
    """Print what `json.dumps` made, which is ASCII, of any length. Raises what `say` raises."""
    _echo(text, err=False)


def _echo(text: str, *, err: bool) -> None:
    try:
        click.echo(text, err=err)
    except BrokenPipeError:
        raise
    except OSError as exc:
        raise click.ClickException(f"cannot print: {exc.strerror or exc}") from None


def failure(error: BaseException) -> click.ClickException:
    """Return the exception that ends a command with exit status 1 and prints the error as one line."""
    return click.ClickException(printable(str(error), LONGEST_LINE))
