"""What a server measures of itself, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest

if TYPE_CHECKING:
    from segue.data import Stats
    from segue.models.prefixes import Prefixes

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
PER_FORWARD = (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 12, 16)


class Metrics:
    """Counters of one server; several servers in one process keep apart."""

    def __init__(self, replica: str | None = None) -> None:
        """`replica` is a label of every figure, where several servers answer at one address."""
        self.replica = replica
        self.registry = own = CollectorRegistry()
        by_method = ("method",)
        self.requests = Counter("segue_requests", "Answered requests.", ("path", "status"), registry=own)
        self.first_token = Histogram(
            "segue_time_to_first_token_seconds",
            "From arrival to the first token, waiting included.",
            by_method,
            buckets=SECONDS,
            registry=own,
        )
        self.between_tokens = Histogram(
            "segue_inter_token_seconds",
            "Between tokens; those of one forward share its time.",
            by_method,
            buckets=SECONDS,
            registry=own,
        )
        self.per_forward = Histogram(
            "segue_tokens_per_forward",
            "New tokens per target forward of a request.",
            by_method,
            buckets=PER_FORWARD,
            registry=own,
        )
        self.prompt_tokens = Counter("segue_prompt_tokens", "Tokens of prompts.", by_method, registry=own)
        self.tokens = Counter("segue_tokens", "New tokens.", by_method, registry=own)
        self.drafted = Counter("segue_drafted_tokens", "Proposed tokens.", by_method, registry=own)
        self.accepted = Counter("segue_accepted_tokens", "Proposed tokens that were kept.", by_method, registry=own)
        self.acceptance = Gauge("segue_acceptance", "Share of proposed tokens kept so far.", by_method, registry=own)
        self.forwards = Counter("segue_forwards", "Forwards of the engine.", registry=own)
        self.queued = Gauge("segue_queue_length", "Requests that wait for the engine.", registry=own)
        self.running = Gauge("segue_running", "Runs in the engine.", registry=own)
        self.kv_bytes = Gauge("segue_kv_bytes", "Cache rows set aside for admitted runs.", registry=own)
        self.prefix_hits = Gauge("segue_prefix_hits", "Prompts that began like an earlier one.", registry=own)
        self.prefix_tokens = Gauge("segue_prefix_tokens", "Their tokens that were not read again.", registry=own)
        self.prefix_bytes = Gauge("segue_prefix_bytes", "Cache rows kept of earlier prompts.", registry=own)
        by_kind = ("kind",)  # embeddings or rerank
        self.encoder_queue = Gauge("segue_encoder_queue_length", "Requests at the encoders.", registry=own)
        self.encoded_texts = Counter("segue_encoded_texts", "Texts that encoders read.", by_kind, registry=own)
        self.encoded_tokens = Counter("segue_encoded_tokens", "Their tokens.", by_kind, registry=own)
        self.encoder_seconds = Histogram(
            "segue_encoder_seconds",
            "From arrival to the answer of an encoder, waiting included.",
            by_kind,
            buckets=SECONDS,
            registry=own,
        )
        self._totals: dict[str, tuple[int, int]] = {}

    def book(self, stats: Stats) -> None:
        """Count a finished answer."""
        method = stats.method
        self.prompt_tokens.labels(method).inc(stats.prompt_tokens)
        self.tokens.labels(method).inc(stats.tokens)
        self.drafted.labels(method).inc(stats.drafted)
        self.accepted.labels(method).inc(stats.accepted)
        self.per_forward.labels(method).observe(stats.tokens_per_forward)
        drafted, accepted = self._totals.get(method, (0, 0))
        self._totals[method] = drafted, accepted = drafted + stats.drafted, accepted + stats.accepted
        if drafted:
            self.acceptance.labels(method).set(accepted / drafted)

    def reuse(self, prefixes: Prefixes) -> None:
        """What earlier prompts have saved."""
        self.prefix_hits.set(prefixes.hits)
        self.prefix_tokens.set(prefixes.tokens)
        self.prefix_bytes.set(prefixes.bytes)

    def text(self) -> bytes:
        """As Prometheus reads them."""
        return generate_latest(self.registry if self.replica is None else Labelled(self.registry, self.replica))


class Labelled(CollectorRegistry):
    """What a registry holds, with the name of its replica."""

    def __init__(self, registry: CollectorRegistry, replica: str) -> None:
        super().__init__()
        self._registry = registry
        self._replica = replica

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [one._replace(labels={**one.labels, "replica": self._replica}) for one in metric.samples]
            yield metric
