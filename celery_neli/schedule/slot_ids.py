"""The id of a slot: the task id of its message, whichever leader sends it."""

from __future__ import annotations

from datetime import datetime, timezone
from functools import lru_cache
from hashlib import sha1
from typing import Final
from uuid import UUID

#: The namespace of the slots' ids.
NAMESPACE: Final = UUID("5b9ad6f0-7c0e-5d8e-9d57-0d4c4e4c4931")
_NAMESPACE = NAMESPACE.bytes


@lru_cache(maxsize=1_000)  # asked when a slot is sent, and when it is told what became of it
def slot_id(group: str, entry: str, slot: str) -> str:
    """Return the task id of a slot, the same for every sender: UUIDv5 of group, entry and slot (ISO 8601, UTC)."""
    # The value of str(uuid5(…)) (RFC 9562, 5.5), in a third of the time.
    name = f"{group}\n{entry}\n{slot}".encode("utf-8", "surrogatepass")
    digest = sha1(_NAMESPACE + name, usedforsecurity=False).hexdigest()
    variant = "89ab"[int(digest[16], 16) & 3]
    return f"{digest[:8]}-{digest[8:12]}-5{digest[13:16]}-{variant}{digest[17:20]}-{digest[20:32]}"


def id_at(group: str, entry: str, slot: float) -> str:
    """Return the `slot_id` of the slot at these Unix seconds."""
    return slot_id(group, entry, datetime.fromtimestamp(slot, timezone.utc).isoformat())
