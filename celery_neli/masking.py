"""Which values of Kafka's properties are secret, and text without them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

__all__ = ["HIDDEN", "PUBLIC", "Masked", "hide_from_reports", "is_secret", "masked", "secrets_of"]

HIDDEN: Final = "***"
_SECRET = re.compile(
    r"pass|secret|token(?!\.endpoint|_refresh)|jaas|\.key\b(?!\.(?:location|file))|key\.pem|oauthbearer\.config"
    r"|credential(?!s\.client\.id)",
    re.IGNORECASE,
)
_MORE = r"JAAS|\bPEM\b|OAUTHBEARER\.CONFIG|CREDENTIAL"  # beside TOKEN, KEY, SECRET and PASS
PUBLIC: Final = ("bootstrap.servers", "client.id", "security.protocol", "sasl.mechanism", "sasl.mechanisms")


class Masked(dict[str, Any]):
    """Properties whose `repr` shows no more than names and what is public: a traceback's locals may be printed."""

    def __repr__(self) -> str:
        return repr({name: value if name in PUBLIC else HIDDEN for name, value in self.items()})


def is_secret(name: str) -> bool:
    """Return True if the property `name` holds a password, a key or a token."""
    return _SECRET.search(name) is not None


def secrets_of(properties: Mapping[str, Any]) -> list[str]:
    """Return the values that must never be shown, the longest first. Very short ones occur in any text and are left."""
    found: set[str] = set()
    for name, value in properties.items():
        if is_secret(name):
            for text in _texts(value):
                # librdkafka quotes sasl.oauthbearer.config from the word on that it does not understand.
                words = text.split() if name == "sasl.oauthbearer.config" else []
                found |= {text, *words, *(word.partition("=")[2] for word in words)}
    return sorted((value for value in found if len(value) > 3), key=len, reverse=True)


def _texts(value: Any) -> Iterator[str]:
    """Every text that `value` is, or holds."""
    if isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, (bytes, bytearray)):
        yield value.decode(errors="replace")
    elif value is not None and not callable(value):
        yield str(value)


def hide_from_reports() -> None:
    """Have Celery hide our secrets, too, in `celery report` and `celery inspect conf`: Celery goes by
    the names of settings, and of the keys in them.
    """
    from celery.app import utils  # an election needs no Celery

    pattern = utils.HIDDEN_SETTINGS.pattern
    if _MORE not in pattern:
        utils.HIDDEN_SETTINGS = re.compile(f"{pattern}|{_MORE}", utils.HIDDEN_SETTINGS.flags)


def masked(text: str, secrets: Iterable[str]) -> str:
    """Return `text` without the `secrets`, of which longer ones come first."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return text
