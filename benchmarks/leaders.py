"""A leadership that is never lost and a schedule topic that keeps nothing: what remains is the scheduler's own cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from celery_neli.beat.scheduler import Scheduler
from celery_neli.config import Config
from celery_neli.election.role_state import Payload


class SteadyLeadership:
    """Leads from `lead` on, and is its only role. What is written is read back at once."""

    election, name = "beat", "leader"

    def __init__(self, *, leading: bool = True) -> None:
        self.config = Config(group="bench.beat", kafka="127.0.0.1:1")
        self.on_readback: Callable[[], None] | None = None
        self.fit: Callable[[], bool] | None = None
        self._data: Mapping[str, Any] | None = None
        self._term: int | None = 1 if leading else None

    def lead(self) -> None:
        self._term = 1

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def progress(self) -> None: ...
    def predecessor_active_until(self) -> None: ...
    def ask(self) -> None: ...

    def role(self, name: str) -> SteadyLeadership:
        return self

    def leading_term(self) -> int | None:
        return self._term

    def may_start(self, term: int | None = None) -> bool:
        return self._term is not None and term in (None, self._term)

    may_finish = may_start

    @property
    def last_payload(self) -> Payload:
        return Payload(term=self._term, data=self._data, own=self._data is not None, known=True)

    def set_payload(self, term: int, data: Mapping[str, Any], *, now: bool = False) -> None:
        self._data = data
        if self.on_readback is not None:
            self.on_readback()


class Sink:
    """A schedule topic in which whatever is written arrives, and which has nothing to tell."""

    generation = drained = whole = unsaved = 0
    torn = False

    def __init__(self, *_: object) -> None:
        self.written = 0

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def forget_unsaved(self) -> None: ...
    def refuse(self, *_: object) -> None: ...

    def drain(self) -> dict[Any, Any]:
        return {}

    def fit(self) -> bool:
        return True

    def unready(self) -> str:
        return ""

    def read_to_end(self, timeout: float) -> bool:
        return True

    def write(self, kind: str, name: str, value: bytes | None) -> None:
        self.written += 1

    def saved(self, kind: str, name: str) -> bool:
        return True

    def flush(self, timeout: float) -> bool:
        return True


class LedScheduler(Scheduler):
    """The scheduler as `celery beat` runs it, without Kafka."""

    topic_factory = staticmethod(Sink)  # type: ignore[assignment]
