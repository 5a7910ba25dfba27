"""The figures that Prometheus reads from a node (https://prometheus.io/docs/concepts/metric_types/).

Events are counted where they happen, by the counters below. What merely is, such as the sessions that are
open, is read when somebody asks: :meth:`Metrics.read_from`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STEP_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

Phase = Literal["prefill", "decode", "verify", "infer"]
"""What a step is for: a prompt, one token, tokens that were guessed, or a graph's arrays."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One figure as it is now."""

    name: str
    help: str
    value: float
    labels: dict[str, str] = field(default_factory=dict[str, str])
    kind: Literal["gauge", "counter"] = "gauge"
    """A counter only ever rises; its name is shown with ``_total``."""


Readings = Callable[[], Iterable[Reading]]


class Metrics:
    """The counters of one node or client. Any thread may count."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.steps = self._counter("steps", "Steps computed here.", "phase")
        self.tokens = self._counter("tokens", "Tokens that those steps added to a cache.", "phase")
        self.failures = self._counter("failures", "Steps and sessions that came to nothing.", "code")
        self.refusals = self._counter("refusals", "Sessions that were refused.", "code")
        self.reroutes = self._counter("reroutes", "Losses of hops that a session survived.", "way")
        self._seconds = Histogram(
            "shoal_step_seconds",
            "What a step spent here.",
            ["phase", "part"],
            buckets=STEP_BUCKETS_S,
            registry=self._registry,
        )
        self._by_phase: dict[Phase, tuple[Counter, Counter, Histogram, Histogram]] = {}
        ProcessCollector(namespace="shoal", registry=self._registry)

    def step(self, phase: Phase, tokens: int, compute_us: int, waiting_us: int) -> None:
        """Count one step that was computed here."""
        steps, counted, compute, waiting = self._of(phase)
        steps.inc()
        counted.inc(tokens)
        compute.observe(compute_us / 1e6)
        waiting.observe(waiting_us / 1e6)

    def _of(self, phase: Phase) -> tuple[Counter, Counter, Histogram, Histogram]:
        """A phase's own counters; to find them by their labels takes longer than to count."""
        found = self._by_phase.get(phase)
        if found is None:
            seconds = self._seconds
            found = self._by_phase[phase] = (
                self.steps.labels(phase),
                self.tokens.labels(phase),
                seconds.labels(phase, "compute"),
                seconds.labels(phase, "waiting"),
            )
        return found

    def read_from(self, readings: Readings) -> None:
        """Have ``readings`` called whenever the figures are asked for. No two sources share a name."""
        self._registry.register(_Source(readings))

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, help: str, label: str) -> Counter:
        return Counter(f"shoal_{name}", help, [label], registry=self._registry)


class _Source(Collector):
    """Readings as the registry wants them."""

    def __init__(self, readings: Readings) -> None:
        self._readings = readings

    def describe(self) -> Iterable[Metric]:
        """Nothing: the names are known when they are read."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """One family of samples for each name."""
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        for reading in self._readings():
            family = families.get(reading.name)
            if family is None:
                kind = GaugeMetricFamily if reading.kind == "gauge" else CounterMetricFamily
                family = kind(reading.name, reading.help, labels=list(reading.labels))
                families[reading.name] = family
            family.add_metric(list(reading.labels.values()), reading.value)
        return families.values()
