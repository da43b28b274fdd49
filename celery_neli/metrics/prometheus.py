"""Shows the metrics to Prometheus, by prometheus-client's default registry, and so wherever the application shows that.

Only the main process does: a forked child shows none, and prometheus-client's files for several processes
(`PROMETHEUS_MULTIPROC_DIR`) never hold these metrics.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from celery_neli.logs import escaping
from celery_neli.metrics.catalogue import COUNTER, GAUGE, METRICS, TOTAL
from celery_neli.metrics.numbers import Distribution, Family, Numbers

if TYPE_CHECKING:
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.metrics_core import Metric as Shown

_Simple = TypeVar("_Simple", "CounterMetricFamily", "GaugeMetricFamily")

logger = escaping(logging.getLogger(__name__))


class Exporter:
    """A collector of prometheus-client. Any thread; never raises an `Exception`."""

    def __init__(self, read: Callable[[], list[Family]]) -> None:
        self._read, self._pid, self._failed = read, os.getpid(), False

    def describe(self) -> Iterable[Shown]:
        """Return all metrics without values: the registry refuses a name that it has."""
        return [shown(Family(each, {})) for each in METRICS]

    def collect(self) -> Iterator[Shown]:
        """Yield all metrics; none in a forked child, which would show its parent's."""
        if os.getpid() != self._pid:
            return
        try:
            families = self._read()
        except Exception:
            if not self._failed:  # what else the application shows must not suffer
                logger.exception("metrics not read, which is logged once")
            self._failed = True
            return
        yield from map(shown, families)


def shown(family: Family) -> Shown:
    """Return a family as prometheus-client has it."""
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    metric = family.metric
    if metric.kind == COUNTER:
        counter = CounterMetricFamily(metric.name.removesuffix(TOTAL), metric.help, labels=metric.labels)
        return _filled(counter, family)
    if metric.kind == GAUGE:
        return _filled(GaugeMetricFamily(metric.name, metric.help, labels=metric.labels), family)
    histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    for labels, found in family.values.items():
        histogram.add_metric(labels, list(_buckets(found)), found.sum)
    return histogram


def _filled(made: _Simple, family: Family) -> _Simple:
    for labels, value in family.values.items():
        made.add_metric(labels, value)
    return made


def _buckets(found: Distribution) -> Iterator[tuple[str, float]]:
    from prometheus_client.utils import floatToGoString

    below = 0
    for bound, count in zip((*found.bounds, float("inf")), found.counts, strict=True):
        below += count
        yield str(floatToGoString(bound)), below  # type: ignore[no-untyped-call]


def exposition(accept: str = "") -> tuple[bytes, str] | None:
    """Return all that prometheus-client's default registry has, and its content type; None if it is not installed.

    `accept` is the header of the request: OpenMetrics for those that ask for it. Any thread; takes milliseconds. May
    raise what a collector of the application raises.
    """
    try:
        from prometheus_client import REGISTRY
        from prometheus_client.exposition import choose_encoder
    except ImportError:
        return None
    encode, content_type = choose_encoder(accept)
    return encode(REGISTRY), content_type


_exporter: Exporter | None = None


def start(read: Callable[[], list[Family]], numbers: Numbers) -> None:
    """Show what `read` returns from now on, in the place of what was shown before (by the parent of this process)."""
    global _exporter
    from prometheus_client import REGISTRY

    stop()
    exporter = Exporter(read)
    try:
        REGISTRY.register(exporter)
    except ValueError as exc:
        logger.warning("metrics not shown: the application has some of the same names in prometheus-client: %s", exc)
    else:
        _exporter = exporter


def stop() -> None:
    """Show nothing any more. Repeatable."""
    global _exporter
    from prometheus_client import REGISTRY

    exporter, _exporter = _exporter, None
    if exporter is not None:
        try:
            REGISTRY.unregister(exporter)
        except KeyError:
            pass  # the application has done so
