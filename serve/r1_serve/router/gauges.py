"""Gauges read when scraped: the fleet as this router sees it now, its queue, its silent streams, and what the plans
promised. docs/metrics.md says of each what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from r1_cluster.plan import Plan

from r1_serve.router.ranks import Ranks
from r1_serve.router.service import Service

_RANK = ("model", "plan", "pool", "gang", "rank")


class RankCollector(Collector):
    """The ranks attached now. A gang is labelled by its slot, not its id, so that restarts make no series."""

    def __init__(self, ranks: Ranks, models: Iterable[str]) -> None:
        self._ranks = ranks
        self._models = tuple(models)

    def collect(self) -> Iterator[Metric]:
        gauges: dict[str, GaugeMetricFamily | CounterMetricFamily] = {
            "running": GaugeMetricFamily("r1_rank_running", "Requests running on the rank", labels=_RANK),
            "waiting": GaugeMetricFamily("r1_rank_waiting", "Requests waiting on the rank", labels=_RANK),
            "in_flight": GaugeMetricFamily("r1_rank_in_flight", "Requests of this router on the rank", labels=_RANK),
            "kv": GaugeMetricFamily("r1_rank_kv_usage_ratio", "Share of the rank's KV cache in use", labels=_RANK),
            "step": GaugeMetricFamily("r1_rank_step_seconds", "The rank's last engine step", labels=_RANK),
            "preemptions": GaugeMetricFamily("r1_rank_preemptions", "Preemptions since the rank began", labels=_RANK),
            "seats": GaugeMetricFamily("r1_rank_max_num_seqs", "Requests the rank runs at once", labels=_RANK),
            "kv_tokens": GaugeMetricFamily("r1_rank_kv_tokens", "Tokens the rank's KV cache holds", labels=_RANK),
            "draining": GaugeMetricFamily("r1_rank_draining", "1 while the rank takes no new requests", labels=_RANK),
            "prompt": CounterMetricFamily("r1_rank_prompt_tokens", "Prompt tokens vLLM computed", labels=_RANK),
            "tokens": CounterMetricFamily("r1_rank_generation_tokens", "Tokens vLLM generated", labels=_RANK),
            "queries": CounterMetricFamily("r1_rank_prefix_queries", "Prompt tokens looked up in cache", labels=_RANK),
            "hits": CounterMetricFamily("r1_rank_prefix_hits", "Prompt tokens found in cache", labels=_RANK),
            "drafts": CounterMetricFamily("r1_rank_draft_tokens", "Tokens drafted by the MTP layer", labels=_RANK),
            "taken": CounterMetricFamily("r1_rank_accepted_draft_tokens", "Of those, as chosen", labels=_RANK),
        }
        attached = GaugeMetricFamily("r1_ranks_attached", "Ranks attached to this router", labels=("model",))
        ready = GaugeMetricFamily("r1_ranks_ready", "Ranks of whole gangs that stay", labels=("model",))
        for rank in self._ranks:
            hello, load = rank.hello, rank.load
            values = (hello.model, rank.plan.name, hello.pool, str(rank.slot), str(hello.rank))
            told = {
                "running": load.running,
                "waiting": load.waiting,
                "in_flight": rank.in_flight,
                "kv": load.kv_usage,
                "step": load.step_time_us / 1e6,
                "preemptions": load.preemptions_total,
                "seats": hello.capacity.max_num_seqs,
                "kv_tokens": hello.capacity.kv_tokens,
                "draining": rank.draining,
                "prompt": load.prompt_tokens_total,
                "tokens": load.generation_tokens_total,
                "queries": load.prefix_queries_total,
                "hits": load.prefix_hits_total,
                "drafts": load.draft_tokens_total,
                "taken": load.accepted_draft_tokens_total,
            }
            for name, value in told.items():
                gauges[name].add_metric(values, value)
        for model in self._models:
            attached.add_metric((model,), len(self._ranks.of(model)))
            ready.add_metric((model,), len(self._ranks.usable(model)))
        yield attached
        yield ready
        yield from gauges.values()


class QueueCollector(Collector):
    """Each model's queue, and how much of the fleet is spoken for."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        def gauge(name: str, text: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(name, text, labels=("model",))

        queued = gauge("r1_queued_requests", "Requests waiting in the router for their turn")
        wait = gauge("r1_queue_wait_seconds", "How long what is queued takes to start")
        pressure = gauge("r1_kv_forecast_ratio", "Forecast KV at its worst over the fleet's KV")
        saturation = gauge("r1_saturation_ratio", "0 idle, 0.8 full and nothing waits, 1 about to refuse")
        streams = gauge("r1_streams", "Choices that run on a rank or wait for another one")
        silence = gauge("r1_stream_silence_seconds", "Longest time one of them has been without a token")
        burn = gauge("r1_slo_burn_rate", "Speed at which the error budget is spent, last 5 minutes; 1 is just in time")
        service = self._service
        quiet: dict[str, list[float]] = {name: [] for name in service.catalog.models}
        for call in service.calls:
            quiet[call.model.name] += [g.silent_s() for g in call.generations if not g.done]
        for name, silences in quiet.items():
            load = service.desk.load(name)
            queued.add_metric((name,), load.queued)
            wait.add_metric((name,), load.wait_s)
            pressure.add_metric((name,), load.pressure)
            saturation.add_metric((name,), load.saturation)
            streams.add_metric((name,), len(silences))
            silence.add_metric((name,), max(silences, default=0.0))
            burn.add_metric((name,), service.slo(name).burn())
        yield from (queued, wait, pressure, saturation, streams, silence, burn)


class PlanCollector(Collector):
    """What the plans promise, for the dashboard that holds the fleet against them."""

    def __init__(self, plans: Iterable[Plan]) -> None:
        self._plans = tuple(plans)

    def collect(self) -> Iterator[Metric]:
        ranks = GaugeMetricFamily("r1_plan_ranks", "Ranks the plan asks for", labels=("model", "plan"))
        predicted = GaugeMetricFamily(
            "r1_plan_predicted", "The performance model's prediction", labels=("model", "plan", "quantity")
        )
        for plan in self._plans:
            names = (plan.model.name, plan.name)
            ranks.add_metric(names, sum(pool.gangs * pool.layout.data_parallel_size for pool in plan.pools))
            for quantity, value in predictions(plan).items():
                predicted.add_metric((*names, quantity), value)
        yield ranks
        yield predicted


def predictions(plan: Plan) -> dict[str, float]:
    """The numbers a plan predicts, by name; none where it was written by hand."""
    predicted: Any = getattr(plan, "predicted", None)
    if predicted is None:
        return {}
    return {name: float(value) for name, value in predicted.model_dump().items() if isinstance(value, int | float)}
