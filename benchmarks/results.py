"""What was measured, and how it stands to what was promised."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.options import Options

#: Versions that the figures depend on.
PACKAGES = ("celery-neli", "celery", "kombu", "celery-redbeat", "confluent-kafka", "redis", "amqp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One case of a part: the median of `samples`, one for each round; None if it was not run, and `why`."""

    part: str
    case: str
    metric: str
    unit: str
    value: float | None
    size: int | None = None
    transport: str | None = None
    samples: list[float] = field(default_factory=list)
    why: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A ratio or a limit that celery-neli promises, and what was found."""

    what: str
    found: float
    least: float | None = None
    most: float | None = None

    @property
    def met(self) -> bool:
        """Whether it is kept in this run."""
        return (self.least is None or self.found >= self.least) and (self.most is None or self.found <= self.most)


class Results:
    """Everything of one run."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.figures: list[Figure] = []
        self.claims: list[Claim] = []
        #: Raw values by name, for plots of distributions: seconds.
        self.distributions: dict[str, list[float]] = {}
        self.took: dict[str, float] = {}
        self.began = time.strftime("%Y-%m-%d %H:%M:%S%z")

    def add(self, part: str, case: str, metric: str, unit: str, samples: list[float], **where: Any) -> float:
        """Keep a figure; its value."""
        value = statistics.median(samples)
        self.figures.append(
            Figure(part=part, case=case, metric=metric, unit=unit, value=value, samples=samples, **where)
        )
        return value

    def left_out(self, part: str, case: str, metric: str, unit: str, why: str, **where: Any) -> None:
        """Say that a case was not run."""
        self.figures.append(Figure(part=part, case=case, metric=metric, unit=unit, value=None, why=why, **where))

    def note(self, part: str, values: Mapping[str, float]) -> None:
        """Keep single values, whose names say what they are and their unit."""
        for name, value in values.items():
            self.add(part, name, "what it costs", "see each", [value])

    def claim(self, what: str, found: float, *, least: float | None = None, most: float | None = None) -> None:
        """Compare with what is promised."""
        self.claims.append(Claim(what=what, found=found, least=least, most=most))

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "began": self.began,
            "machine": {
                "cpus": os.cpu_count(),
                "load": os.getloadavg(),
                "platform": platform.platform(),
                "python": platform.python_version(),
            },
            "versions": {name: _version(name) for name in PACKAGES},
            "options": {**asdict(self.options), "output": str(self.options.output)},
            "seconds": self.took,
            "claims": [{**asdict(claim), "met": claim.met} for claim in self.claims],
            "figures": [asdict(figure) for figure in self.figures],
            "distributions": self.distributions,
        }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
