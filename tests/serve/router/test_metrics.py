from __future__ import annotations

import asyncio
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from prometheus_client import CollectorRegistry
from r1_cluster.plan import Plan
from r1_serve.protos import fleet_pb2 as pb
from r1_serve.router.gauges import PlanCollector, predictions
from r1_serve.router.metrics import Metrics
from r1_serve.router.server import Router
from r1_serve.settings import RouterSettings

DOCS = Path(__file__).parents[3] / "docs" / "metrics.md"
ASK: list[Any] = [{"role": "user", "content": "x"}]
LONGEST_S = 3600


@pytest.fixture
def metrics() -> Metrics:
    return Router([Plan.load("nano-tp1")], RouterSettings(), CollectorRegistry()).metrics


def test_the_documentation_and_the_code_list_the_same_metrics_with_the_same_labels(metrics: Metrics) -> None:
    documented = re.findall(r"^\| `(r1_\w+)` \| ([^|]*) \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    wanted = {name: {label.strip() for label in labels.split(",")} - {"–"} for name, labels in documented}
    found = {}
    for collector in metrics.registry._collector_to_names:
        for family in collector.collect():
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = getattr(collector, "_labelnames", None) or getattr(family, "_labelnames", None) or ()
            found[name] = set(labels)
    assert found == wanted


def test_each_metric_is_documented_with_something_to_do() -> None:
    for row in re.findall(r"^\| `r1_.*$", DOCS.read_text(encoding="utf-8"), re.MULTILINE):
        assert all(cell.strip() for cell in row.strip("|").split("|"))


def test_times_of_requests_have_buckets_to_an_hour(metrics: Metrics) -> None:
    for histogram in (metrics.time_to_first_token, metrics.thinking, metrics.request_duration, metrics.queue_time):
        assert histogram._kwargs["buckets"][-1] >= LONGEST_S


async def test_a_request_is_counted_once_by_kind_of_token(world: Any, ids: Any) -> None:
    def script(_: pb.Submit) -> list[pb.Delta]:
        return [
            pb.Delta(token_ids=ids("1 + 1"), cached_tokens=2, queue_time_us=1_500_000),
            pb.Delta(token_ids=ids("</think>2")),
            pb.Delta(token_ids=ids("<｜end▁of▁sentence｜>"), finish=pb.FINISH_STOP),
        ]

    worker = await world.worker(script)
    await world.client.chat.completions.create(model="r1-nano", messages=ASK)
    model, tenant = {"model": "r1-nano"}, {"model": "r1-nano", "tenant": "default"}
    prompt = len((await worker.next_submit()).prompt_token_ids)
    assert world.metric("r1_prompt_tokens_total", **tenant) == prompt
    assert world.metric("r1_cached_prompt_tokens_total", **tenant) == 2
    assert world.metric("r1_reasoning_tokens_total", **tenant) == len(ids("1 + 1"))
    assert world.metric("r1_answer_tokens_total", **tenant) == 1
    assert world.metric("r1_requests_total", **model, outcome="ok") == 1
    assert world.metric("r1_choices_total", **model, finish_reason="stop") == 1
    assert world.metric("r1_thoughts_total", **model, thought="complete") == 1
    assert world.metric("r1_inter_token_latency_seconds_count", **model) == 2
    assert world.metric("r1_queue_time_seconds_sum", **model) == 1.5
    for name in ("time_to_first_token", "time_to_first_answer_token", "thinking", "request_duration"):
        assert world.metric(f"r1_{name}_seconds_count", **model) == 1


@pytest.mark.parametrize(
    ("text", "finish", "thought"),
    [
        ("</think>2", pb.FINISH_STOP, "empty"),
        ("1 + 1", pb.FINISH_LENGTH, "unterminated"),
        ("1</think>2", pb.FINISH_STOP, "complete"),
    ],
)
async def test_empty_and_unterminated_thoughts_are_told_apart(
    world: Any, says: Any, text: str, finish: pb.FinishReason, thought: str
) -> None:
    await world.worker(says(text, finish=finish))
    await world.client.chat.completions.create(model="r1-nano", messages=ASK)
    counts = {t: world.metric("r1_thoughts_total", model="r1-nano", thought=t) for t in ("empty", "unterminated")}
    assert {t for t, count in counts.items() if count} == {thought} - {"complete"}


async def test_tokens_of_a_request_that_was_given_up_count_too(world: Any, ids: Any) -> None:
    worker = await world.worker()
    asking = asyncio.create_task(world.client.chat.completions.create(model="r1-nano", messages=ASK))
    submit = await worker.next_submit()
    await worker.send(pb.Delta(request_id=submit.request_id, token_ids=ids("1 + 1")))
    (call,) = world.router.service.calls
    await world.until(lambda: call.generations[0].choice.completion_tokens)
    asking.cancel()
    await worker.next_abort()
    assert world.metric("r1_reasoning_tokens_total", model="r1-nano", tenant="default") == len(ids("1 + 1"))


async def test_ranks_are_shown_while_attached_and_their_series_return_after_a_restart(world: Any) -> None:
    labels = {"model": "r1-nano", "plan": "nano-tp1", "pool": "main", "gang": "0", "rank": "0"}
    worker = await world.worker()
    load = pb.Load(running=3, waiting=2, kv_usage=0.25, step_time_us=20_000, preemptions_total=7)
    load.prompt_tokens_total, load.generation_tokens_total = 50, 900
    load.prefix_queries_total, load.prefix_hits_total = 80, 30
    await worker.send(load=load, draining=True)
    await world.until(lambda: world.metric("r1_rank_draining", **labels))
    assert world.metric("r1_rank_running", **labels) == 3
    assert world.metric("r1_rank_waiting", **labels) == 2
    assert world.metric("r1_rank_kv_usage_ratio", **labels) == 0.25
    assert world.metric("r1_rank_step_seconds", **labels) == 0.02
    assert world.metric("r1_rank_preemptions", **labels) == 7
    assert world.metric("r1_rank_in_flight", **labels) == 0
    assert world.metric("r1_rank_max_num_seqs", **labels) == 64
    assert world.metric("r1_rank_kv_tokens", **labels) == 10_000
    for name, value in (("prompt_tokens", 50), ("generation_tokens", 900), ("prefix_queries", 80), ("prefix_hits", 30)):
        assert world.metric(f"r1_rank_{name}_total", **labels) == value
    assert world.metric("r1_ranks_ready", model="r1-nano") == 0  # it drains
    assert world.metric("r1_ranks_attached", model="r1-nano") == 1
    await worker.die()
    await world.until(lambda: not world.metric("r1_ranks_attached", model="r1-nano"))
    assert world.metric("r1_rank_running", **labels) is None
    assert world.metric("r1_ranks_detached_total", model="r1-nano", plan="nano-tp1", how="left") == 1
    other = await world.worker()
    assert world.metric("r1_rank_running", **labels) == 0
    assert world.metric("r1_ranks_ready", model="r1-nano") == 1
    await other.die()
    await world.until(lambda: not world.metric("r1_ranks_attached", model="r1-nano"))
    assert world.metric("r1_ranks_detached_total", model="r1-nano", plan="nano-tp1", how="lost") == 1


@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text; version=1.0.0"])
async def test_prometheus_can_scrape(world: Any, accept: str) -> None:
    await world.worker()
    async with httpx.AsyncClient(base_url=world.http) as http:
        response = await http.get("/metrics", headers={"accept": accept})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith(accept.split(";")[0])
    assert 'r1_ranks_attached{model="r1-nano"} 1.0' in response.text


async def test_the_queue_and_silent_streams_are_shown_per_model(world: Any, ids: Any) -> None:
    worker = await world.worker()
    asking = asyncio.create_task(world.client.chat.completions.create(model="r1-nano", messages=ASK))
    submit = await worker.next_submit()
    model = {"model": "r1-nano"}
    assert world.metric("r1_streams", **model) == 1
    assert world.metric("r1_stream_silence_seconds", **model) > 0
    assert world.metric("r1_queued_requests", **model) == 0
    assert world.metric("r1_kv_forecast_ratio", **model) > 0
    assert 0 < world.metric("r1_saturation_ratio", **model) <= 1
    await worker.send(pb.Delta(request_id=submit.request_id, token_ids=ids("1</think>2"), finish=pb.FINISH_STOP))
    await asking
    assert world.metric("r1_streams", **model) == 0
    assert world.metric("r1_stream_silence_seconds", **model) == 0
    assert world.metric("r1_thought_tokens_sum", **model) == 1


async def test_an_answer_in_time_meets_the_objective_and_a_late_one_or_a_fault_of_ours_misses_it(
    world_of: Any, says: Any
) -> None:
    ask = {"model": "r1-nano", "messages": ASK}
    met = {"model": "r1-nano", "met": "true"}
    missed = {"model": "r1-nano", "met": "false"}
    world, strict = await world_of(), await world_of(slo_first_answer_s=1e-9)
    for each in (world, strict):
        await each.worker(says("1</think>2"))
        await each.client.chat.completions.create(**ask)
    assert (world.metric("r1_slo_requests_total", **met), world.metric("r1_slo_requests_total", **missed)) == (1, 0)
    assert world.metric("r1_slo_burn_rate", model="r1-nano") == 0
    assert (strict.metric("r1_slo_requests_total", **met), strict.metric("r1_slo_requests_total", **missed)) == (0, 1)
    assert strict.metric("r1_slo_burn_rate", model="r1-nano") == pytest.approx(100)
    empty = await world_of()
    with pytest.raises(openai.APIStatusError):
        await empty.client.chat.completions.create(**ask)  # no workers
    with pytest.raises(openai.BadRequestError):
        await empty.client.chat.completions.create(**ask, max_tokens=10**6)  # the client's own fault
    assert empty.metric("r1_slo_requests_total", **missed) == 1


def test_a_plan_shows_its_size_and_what_it_predicts_if_anything() -> None:
    plan = Plan.load("nano-dp2-ep2")
    assert predictions(plan.model_copy(update={"predicted": None})) == {}
    registry = CollectorRegistry()
    foretold = SimpleNamespace(model_dump=lambda: {"ttft_p95": 1.5, "cost_per_answer": None, "note": "x"})
    registry.register(PlanCollector([plan.model_copy(update={"predicted": foretold})]))
    names = {"model": "r1-nano", "plan": "nano-dp2-ep2"}
    assert registry.get_sample_value("r1_plan_ranks", names) == 2
    assert registry.get_sample_value("r1_plan_predicted", names | {"quantity": "ttft_p95"}) == 1.5
    assert registry.get_sample_value("r1_plan_predicted", names | {"quantity": "note"}) is None
