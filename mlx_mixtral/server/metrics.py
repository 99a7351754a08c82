"""Figures for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from mlx_mixtral.server.jobs import EngineStatus
from mlx_mixtral.server.record import Record

KIND = CONTENT_TYPE_LATEST
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """What the server did since its start, and what it does now."""

    def __init__(self, status: Callable[[], EngineStatus]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "mixtral_requests",
            "Requests by route and HTTP status; 499: the client left",
            ["route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "mixtral_request_seconds",
            "From a request to the end of its answer",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._first = Histogram(
            "mixtral_first_token_seconds",
            "From a request to the first token of its answer",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._registry.register(_OfEngine(status))
        ProcessCollector(registry=self._registry)

    def note(self, record: Record) -> None:
        """One request is over."""
        self._requests.labels(record.route, str(record.status)).inc()
        self._seconds.labels(record.route).observe(record.seconds)
        if record.first_s is not None:
            self._first.observe(record.first_s)

    def text(self) -> bytes:
        """All of it in Prometheus' text form."""
        return generate_latest(self._registry)


class _OfEngine(Collector):
    def __init__(self, status: Callable[[], EngineStatus]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        now = self._status()
        gauges = {
            "engine_up": ("Whether the engine's thread runs", now.alive),
            "running": ("Answers under way", now.running),
            "waiting": ("Answers that wait for their turn", now.waiting),
            "kv_bytes": ("Keys and values that running answers may come to", now.kv_bytes),
            "kv_limit_bytes": ("The most of them", now.kv_limit),
            "prefix_bytes": ("Keys and values kept of earlier prompts", now.prefix_bytes),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"mixtral_{name}", text, float(value))
        counters = {
            "prompt_tokens": ("Tokens of prompts computed", now.prompt_tokens),
            "cached_tokens": ("Tokens of prompts that were known", now.cached_tokens),
            "completion_tokens": ("Tokens of answers", now.completion_tokens),
            "drafted_tokens": (
                "Tokens tried because an earlier text goes on so",
                now.drafted_tokens,
            ),
            "accepted_tokens": ("Those of them that came true", now.accepted_tokens),
            "refused": ("Answers refused because of the queue", now.refused),
            "engine_restarts": ("How often the engine was started again", now.restarts),
        }
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(f"mixtral_{name}", text, float(value))
        ended = CounterMetricFamily("mixtral_answers", "Answers by how they ended", labels=["end"])
        for reason, count in now.finished.items():
            ended.add_metric([reason], count)
        yield ended
