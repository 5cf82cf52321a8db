"""Prefill pools beside decode pools: prompts leave decoding alone, KV takes its time, nothing is lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from r1_cluster.catalog import GPUS, MODELS
from r1_cluster.perf.layout import Split
from r1_cluster.perf.serving import transfer_seconds
from r1_cluster.perf.step import Engine
from r1_cluster.plan import Plan, PlanError, RankMemory
from r1_cluster.routing.scaling import ScalingRules
from r1_cluster.simulator import Autoscaling, Failure, Linear, Report, Scenario, Simulation
from r1_cluster.workload import Closed, Fixed, Poisson, RequestClass, Workload, load

PLAN = Plan.from_yaml("""
version: r1.plan/v1
name: r1-pools
model: {name: deepseek-r1, checkpoint: deepseek-ai/DeepSeek-R1}
engine: {max_model_len: 65536, max_num_seqs: 256, max_num_batched_tokens: 8192, kv_cache_dtype: fp8}
fleet: {accelerator: H200, accelerators_per_node: 8}
pools:
  - {name: prefill, role: prefill, gangs: 2, layout: {tensor_parallel_size: 8, expert_parallel_size: 8}}
  - {name: decode, role: decode, gangs: 2, layout: {data_parallel_size: 8, expert_parallel_size: 8}}
""")


def prompts(tokens: int, rate: float, *, output: int = 400) -> Workload:
    kind = RequestClass(
        name="all",
        prompt_tokens=Fixed(tokens=tokens),
        thinking_tokens=Fixed(tokens=output // 2),
        answer_tokens=Fixed(tokens=output // 2),
    )
    return Workload(name="prompts", classes=(kind,), arrivals=Poisson(rate=rate))


def simulated(workload: Workload, requests: int = 300, **how: Any) -> Report:
    return Simulation(PLAN, workload, requests=requests, **how).run()


@pytest.mark.parametrize("tokens", [500, 8000, 30_000])
def test_a_lone_request_takes_its_prefill_the_handover_the_transfer_and_decodes_alone(tokens: int) -> None:
    report = simulated(prompts(tokens, 0.001), requests=5)
    r1, h200 = MODELS["deepseek-r1"], GPUS["H200"]
    first = Engine.of(r1, h200, Split(tensor=8, expert=8), "vllm", kv_dtype="fp8")
    moved = transfer_seconds(first, tokens)
    assert moved == pytest.approx(tokens * 576 * 61 / (50e9 * 0.8 * 8))
    expected = first.prefill_seconds(tokens) + moved + first.overheads.handover + first.overheads.ttft
    assert report.metrics.ttft.mean == pytest.approx(expected, rel=0.12)
    second = Engine.of(r1, h200, Split(data=8, expert=8), "vllm", kv_dtype="fp8")
    assert report.metrics.tpot.mean == pytest.approx(second.decode_seconds(1, tokens + 200), rel=0.05)


def test_prompts_hold_up_no_decoding() -> None:
    short, long = (simulated(prompts(tokens, 3.0)).metrics.tpot for tokens in (100, 6000))
    assert (long.mean or 0) < 1.2 * (short.mean or 0)
    unified = PLAN.model_copy(update={"pools": (PLAN.pools[1].model_copy(update={"gangs": 4, "role": "unified"}),)})
    mixed = Simulation(unified, prompts(6000, 3.0), requests=300).run().metrics.tpot
    assert (long.quantile(0.95) or 0) < (mixed.quantile(0.95) or 0), "the same GPUs, prompts among the decoding"


def test_prompts_that_come_faster_than_they_are_computed_wait_and_the_pool_is_busy() -> None:
    calm, rushed = (simulated(prompts(8000, rate)) for rate in (0.5, 20.0))
    assert (rushed.metrics.ttft.mean or 0) > 5 * (calm.metrics.ttft.mean or 0)
    assert (rushed.prefill_busy or 0) > 0.6 > (calm.prefill_busy or 0)
    assert rushed.as_dict(0.0)["prefill_busy"] == round(rushed.prefill_busy or 0, 4)


def test_every_token_is_generated_once_also_when_a_gang_is_lost_under_them() -> None:
    asked = load("chat").at_rate(6.0)
    lost = [Failure(at=at, gang=0, restart_s=1.0) for at in (10.0, 20.0, 20.9, 30.0, 45.0)]
    plain, failed = (simulated(asked, scenario=Scenario(failures=each)) for each in ([], lost))
    drawn = next(load("chat").draw(np.random.default_rng(0)))
    for report in (plain, failed):
        assert report.metrics.ended == 300
        assert report.metrics.output_tokens == int((drawn.thinking + drawn.answer)[:300].sum())
    assert failed.metrics.moved > 50


def test_shared_prompts_are_found_in_the_prefill_ranks_caches() -> None:
    report = simulated(load("agent").at_rate(1.5))
    assert report.as_dict(0.0)["cached_prompt_share"] > 0.1


def test_a_full_decode_rank_recomputes_what_it_preempted_by_itself() -> None:
    small = RankMemory(pool="decode", weights=0, workspace=0, kv_cache=0, reserve=0, kv_tokens=40_000)
    report = Simulation(
        PLAN.model_copy(update={"memory": (small,)}), prompts(2000, 30.0, output=4000), requests=300, gangs=1
    ).run()
    assert report.preemptions > 0
    assert report.metrics.output_tokens == 300 * 4000


def test_the_same_seed_gives_the_same_numbers_and_all_gpus_count() -> None:
    one, two = (simulated(load("chat").at_rate(4.0), requests=100).as_dict(0.0) for _ in range(2))
    assert one == two
    assert one["gpus"] == one["mean_gpus"] == 32


def test_a_closed_loop_fills_the_decode_pool() -> None:
    asked = prompts(1000, 1.0).model_copy(update={"arrivals": Closed(concurrency=64)})
    told = simulated(asked, requests=400).as_dict(0.0)
    assert told["requests_per_second"] * told["latency"]["mean"] == pytest.approx(64, rel=0.15)


@pytest.mark.parametrize(
    "how",
    [
        {"profile": Linear(0.01, 1e-4, 1e-8, 1e-5, 0)},
        {"scenario": Scenario(scaling=Autoscaling(ScalingRules(min_gangs=1, max_gangs=3)))},
    ],
    ids=["profile", "autoscaling"],
)
def test_what_is_not_modelled_with_pools_is_refused(how: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="neither with a profile nor with autoscaling"):
        simulated(load("chat"), **how)


def test_pools_of_cpu_ranks_are_refused() -> None:
    nano = Plan.load("nano-tp1")
    pools = tuple(nano.pools[0].model_copy(update={"name": role, "role": role}) for role in ("prefill", "decode"))
    with pytest.raises(PlanError, match="on GPUs, not on CPU ranks"):
        Simulation(nano.model_copy(update={"pools": pools}), load("chat"), requests=1)
