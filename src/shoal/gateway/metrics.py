"""``/metrics``: vLLM's suffixes, so that its dashboards fit, and the swarm's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shoal.client.speculation.counts import SourceCounts, SpeculationCounts

_TTFT = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BETWEEN = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2.5)
_WHOLE = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class GatewayMetrics:
    """What the gateway counts. ``now`` says, when it is asked, what holds at that moment."""

    def __init__(self, now: Callable[[], Iterable[Metric]]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Now(now))
        labels = ("model_name",)
        self.ttft = Histogram(
            "shoal_time_to_first_token_seconds",
            "From a request's arrival to its first token",
            labels,
            buckets=_TTFT,
            registry=self.registry,
        )
        self.between = Histogram(
            "shoal_inter_token_latency_seconds",
            "Between two tokens of an answer",
            labels,
            buckets=_BETWEEN,
            registry=self.registry,
        )
        self.whole = Histogram(
            "shoal_e2e_request_latency_seconds",
            "From a request's arrival to its end",
            labels,
            buckets=_WHOLE,
            registry=self.registry,
        )
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts", labels)
        self.cached_tokens = self._counter(
            "prefix_cache_hits", "Tokens of prompts that were not computed again", labels
        )
        self.generation_tokens = self._counter("generation_tokens", "Tokens of answers", labels)
        sources = (*labels, "source")
        self._guessed = self._counter(
            "spec_decode_num_draft_tokens", "Tokens that were guessed ahead, by what guessed", sources
        )
        self._accepted = self._counter("spec_decode_num_accepted_tokens", "Those that were right", sources)
        self.requests = self._counter(
            "requests", "Requests for an answer, by the route that they took", ("path",)
        )
        self.ended = self._counter(
            "request_success", "Choices that came to their end", (*labels, "finished_reason")
        )
        self.failed = self._counter("request_failure", "Requests that ended in an error", ("code",))
        self.reroutes = self._counter("reroutes", "Times that an answer went on over another route", labels)

    def note_speculation(self, model: str, counts: SpeculationCounts) -> None:
        """What was guessed ahead in one choice."""
        for source in ("ngram", "draft"):
            found = counts.sources.get(source, SourceCounts())
            self._guessed.labels(model, source).inc(found.guessed)
            self._accepted.labels(model, source).inc(found.accepted)

    def text(self) -> bytes:
        """In the text format that Prometheus reads."""
        return generate_latest(self.registry)

    def _counter(self, name: str, about: str, labels: tuple[str, ...]) -> Counter:
        return Counter(f"shoal_{name}", about, labels, registry=self.registry)


def gauge(
    name: str, about: str, values: Iterable[tuple[tuple[str, ...], float]], labels: Iterable[str] = ()
) -> Metric:
    """One thing that can be read off now."""
    family = GaugeMetricFamily(f"shoal_{name}", about, labels=list(labels))
    for label_values, value in values:
        family.add_metric(list(label_values), value)
    return family


class _Now(Collector):
    def __init__(self, now: Callable[[], Iterable[Metric]]) -> None:
        self._now = now

    def collect(self) -> Iterable[Metric]:
        return self._now()
