"""Shows the metrics to OpenTelemetry, by instruments of the global meter provider. Its API alone is needed.

Counters and gauges are observable: they cost nothing until they are read. The API has no observable histogram, so the
values of histograms wait in a bounded deque, which a thread records once a second; only from the first reading on, for
the API may be installed where nothing reads it.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from celery_neli.metrics.catalogue import COUNTER, HISTOGRAM, METRICS, Metric, version
from celery_neli.metrics.numbers import Family, Labels, Numbers

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, Observation

RECORD_EVERY: Final = 1.0  # seconds
MOST: Final = 50_000  # values of histograms that wait; the oldest give way
FRESH: Final = 0.1  # seconds for which one reading serves all instruments


class Instruments:
    """The instruments of one meter, made once; `show` and `hide` say what they tell. A forked child tells nothing."""

    def __init__(self, meter: Meter) -> None:
        self.pid = os.getpid()
        self._source: tuple[Callable[[], list[Family]], Numbers] | None = None
        self._found: dict[Metric, Family] = {}
        self._found_at = float("-inf")
        self._waiting: deque[tuple[Metric, Labels, float]] = deque(maxlen=MOST)
        self._ended = threading.Event()
        self._recorder: threading.Thread | None = None
        self._histograms = {
            each: meter.create_histogram(
                each.otel_name, unit=each.unit, description=each.help, explicit_bucket_boundaries_advisory=each.buckets
            )
            for each in METRICS
            if each.kind == HISTOGRAM
        }
        for each in METRICS:
            if each.kind != HISTOGRAM:
                make = meter.create_observable_counter if each.kind == COUNTER else meter.create_observable_gauge
                make(each.otel_name, [partial(self._observe, each)], unit=each.unit, description=each.help)

    def show(self, read: Callable[[], list[Family]], numbers: Numbers) -> None:
        """Tell what `read` returns, and the values that `numbers` observes."""
        self._found_at = float("-inf")
        self._source = read, numbers

    def hide(self) -> None:
        """Tell nothing any more; record what waits, within a second. Repeatable."""
        source, self._source = self._source, None
        recorder, self._recorder = self._recorder, None
        if source is not None:
            source[1].observer = None
        if recorder is not None:
            self._ended.set()
            recorder.join(RECORD_EVERY)

    def _observe(self, metric: Metric, _: CallbackOptions) -> Iterable[Observation]:
        from opentelemetry.metrics import Observation

        source = self._source
        if source is None or os.getpid() != self.pid:
            return []
        if self._recorder is None:
            self._start_recording(source[1])
        now = time.monotonic()
        if now - self._found_at > FRESH:
            self._found, self._found_at = {each.metric: each for each in source[0]()}, now
        family = self._found.get(metric)
        values = {} if family is None else family.values
        return [Observation(value, _attributes(metric, labels)) for labels, value in values.items()]

    def _start_recording(self, numbers: Numbers) -> None:
        self._ended = threading.Event()
        # Not threads.spawn: under gevent, the locks of OpenTelemetry's SDK are the greenlets'.
        self._recorder = threading.Thread(
            target=self._record, args=(self._ended,), name="neli-otel-histograms", daemon=True
        )
        self._recorder.start()
        numbers.observer = self._note

    def _note(self, *value: Any) -> None:
        self._waiting.append(value)

    def _record(self, ended: threading.Event) -> None:
        over = False
        while not over:
            over = ended.wait(RECORD_EVERY)
            for _ in range(len(self._waiting)):
                metric, labels, value = self._waiting.popleft()
                self._histograms[metric].record(value, _attributes(metric, labels))


def _attributes(metric: Metric, labels: Sequence[str]) -> dict[str, str]:
    return dict(zip(metric.labels, labels, strict=True))


_instruments: Instruments | None = None


def start(read: Callable[[], list[Family]], numbers: Numbers) -> None:
    """Show what `read` returns from now on, by the global meter provider, which may be set later."""
    global _instruments
    from opentelemetry import metrics

    if _instruments is None or _instruments.pid != os.getpid():
        _instruments = Instruments(metrics.get_meter("celery_neli", version()))
    _instruments.show(read, numbers)


def stop() -> None:
    """Show nothing any more. Repeatable."""
    if _instruments is not None:
        _instruments.hide()
