"""The router's metrics, ``r1_*`` in Prometheus form. docs/metrics.md says of each what to do about it.

Labels only take values of the plans, of the error tree and of small fixed sets: no client can make a new series.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from r1_serve.errors import R1Error
from r1_serve.router.choice import Thought
from r1_serve.router.histogram import LoopHistogram
from r1_serve.router.usage import Usage

DEFAULT_TENANT = "default"
NO_MODEL = "unknown"

# Thoughts take from a blink to an hour; steps from a millisecond to a stalled second.
_TO_AN_HOUR = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600, 1200, 1800, 2700, 3600)
_TOKENS = tuple(2**k for k in range(4, 17))  # to 65,536
_STEPS = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 5)


class Metrics:
    """All of one router, registered in ``registry``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._made: dict[tuple[str, str], ModelMetrics] = {}

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: Iterable[float] = _TO_AN_HOUR) -> Histogram:
            return Histogram(name, text, ("model",), registry=registry, buckets=tuple(buckets))

        tokens = ("model", "tenant")
        self.prompt_tokens = counter("r1_prompt_tokens_total", "Prompt tokens of admitted requests", *tokens)
        self.cached_tokens = counter("r1_cached_prompt_tokens_total", "Prompt tokens found in a prefix cache", *tokens)
        self.reasoning_tokens = counter("r1_reasoning_tokens_total", "Tokens of thoughts, tags excluded", *tokens)
        self.answer_tokens = counter("r1_answer_tokens_total", "Tokens of answers", *tokens)
        self.requests = counter("r1_requests_total", "Requests by outcome: ok or an error's reason", "model", "outcome")
        self.choices = counter("r1_choices_total", "Completed choices by finish reason", "model", "finish_reason")
        self.thoughts = counter("r1_thoughts_total", "Completed choices by how their thought went", "model", "thought")
        self.stray_deltas = counter("r1_stray_deltas_total", "Deltas for requests no longer known here")
        self.connections = Gauge("r1_http_connections", "Open HTTP connections", registry=registry)
        self.connections_closed = counter("r1_http_connections_closed_total", "Connections closed for abuse", "why")
        for why in ("too_many", "idle", "stalled"):
            self.connections_closed.labels(why)
        self.thoughts_closed = counter(
            "r1_thoughts_closed_total", "Thoughts closed by the router: budget or loop", "model", "cause"
        )
        self.migrations = counter("r1_migrations_total", "Generations that lost their rank, by outcome", "outcome")
        for outcome in ("resumed", "no_worker", "poison", "abandoned"):
            self.migrations.labels(outcome)
        self.migration_wait = Histogram(
            "r1_migration_wait_seconds", "Loss of a rank to resubmission", registry=registry, buckets=_TO_AN_HOUR
        )
        self.time_to_first_token = histogram("r1_time_to_first_token_seconds", "Arrival to the first token of a choice")
        self.time_to_first_answer_token = histogram(
            "r1_time_to_first_answer_token_seconds", "Arrival to the first token after the thought"
        )
        self.thought_tokens = histogram("r1_thought_tokens", "Tokens of a completed choice's thought", _TOKENS)
        self.slo = counter("r1_slo_requests_total", "Requests by whether their answer began in time", "model", "met")
        self.detached = counter(
            "r1_ranks_detached_total", "Ranks that went: left of their own will, or lost", "model", "plan", "how"
        )
        self.attach_refused = counter("r1_attach_refused_total", "Workers turned away, by reason", "reason")
        self.thinking = histogram("r1_thinking_seconds", "First token to the end of the thought")
        self.inter_token_latency = LoopHistogram(
            "r1_inter_token_latency_seconds", "Time between tokens", "model", _STEPS
        )
        registry.register(self.inter_token_latency)
        self.queue_time = histogram("r1_queue_time_seconds", "Wait in the engine before its first step")
        self.request_duration = histogram("r1_request_duration_seconds", "Arrival to the last token, admitted requests")

    def outcome(self, model: str, error: R1Error | None) -> None:
        self.requests.labels(model, error.reason if error else "ok").inc()

    def of(self, model: str, tenant: str = DEFAULT_TENANT) -> ModelMetrics:
        """Made once a model and tenant: a tenants file names few."""
        key = model, tenant
        if key not in self._made:
            self._made[key] = ModelMetrics(self, model, tenant)
        return self._made[key]


class ModelMetrics:
    """One model's and tenant's series, labels resolved once: nothing is looked up for a token."""

    def __init__(self, metrics: Metrics, model: str, tenant: str) -> None:
        self._prompt_tokens = metrics.prompt_tokens.labels(model, tenant)
        self._cached_tokens = metrics.cached_tokens.labels(model, tenant)
        self._reasoning_tokens = metrics.reasoning_tokens.labels(model, tenant)
        self._answer_tokens = metrics.answer_tokens.labels(model, tenant)
        self._thoughts = {thought: metrics.thoughts.labels(model, thought.value) for thought in Thought}
        self._closed = {
            cause: metrics.thoughts_closed.labels(model, cause.value) for cause in (Thought.BUDGET, Thought.LOOP)
        }
        self._choices = {reason: metrics.choices.labels(model, reason) for reason in ("stop", "length")}
        self._time_to_first_token = metrics.time_to_first_token.labels(model)
        self.time_to_first_answer_token = metrics.time_to_first_answer_token.labels(model)
        self._thinking = metrics.thinking.labels(model)
        self._thought_tokens = metrics.thought_tokens.labels(model)
        self.inter_token_latency = metrics.inter_token_latency.labels(model)
        self._queue_time = metrics.queue_time.labels(model)
        self._request_duration = metrics.request_duration.labels(model)

    def first_token(self, seconds: float, queue_seconds: float) -> None:
        self._time_to_first_token.observe(seconds)
        self._queue_time.observe(queue_seconds)

    def choice(self, thought: Thought, finish_reason: str, thinking_seconds: float, thinking_tokens: int) -> None:
        self._thoughts[thought].inc()
        self._choices[finish_reason].inc()
        if thought is not Thought.NONE:
            self._thinking.observe(thinking_seconds)
            self._thought_tokens.observe(thinking_tokens)

    def closed(self, cause: Thought) -> None:
        self._closed[cause].inc()

    def request(self, usage: Usage) -> None:
        """An admitted request has ended, well or not: its tokens were computed either way."""
        self._prompt_tokens.inc(usage.prompt_tokens)
        self._cached_tokens.inc(usage.cached_tokens)
        self._reasoning_tokens.inc(usage.reasoning_tokens)
        self._answer_tokens.inc(usage.answer_tokens)
        self._request_duration.observe(usage.total_seconds)
