"""Metrics in the text form that Prometheus scrapes: the table's names and helps, a process's samples, its own use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from schemas.metrics import Samples

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class _Table:
    def __init__(self, samples: Callable[[], Samples]) -> None:
        self._samples = samples

    def describe(self) -> Iterable[Family]:
        """Nothing beforehand: what is not known is not there."""
        return ()

    def collect(self) -> Iterable[Family]:
        """A family for each metric that has samples."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        for metric, values in self._samples().items():
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = kind(metric.name, f"{metric.help} Unit: {metric.unit}.", labels=metric.labels)
            for labels, value in values.items():
                family.add_metric(labels, value)
            yield family


def exposition(samples: Samples) -> bytes:
    """The samples, and CPU, memory and files of this process, as text."""
    from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

    registry = CollectorRegistry()
    registry.register(_Table(lambda: samples))
    ProcessCollector(registry=registry)
    return generate_latest(registry)
