"""The operating point: by hand, by Little's law, and against the closed-loop model that measured runs validate."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from r1_cluster.catalog import GPUS, MODELS
from r1_cluster.perf.layout import Split
from r1_cluster.perf.serving import Pools, estimate
from r1_cluster.perf.serving import Workload as Closed
from r1_cluster.perf.step import Engine
from r1_cluster.planner.demand import Demand
from r1_cluster.planner.load import GRAPHED, Deployment, most_running, point, surged
from r1_cluster.planner.memory import memory

TP8, DP8 = Split(tensor=8, expert_tensor=8), Split(data=8, expert=8)
ASKED = Demand(
    prompt=1024, cached=0, thinking=1800, output=2048, context=2048, context_square=2048**2, prompt_p95=2000,
    thinking_p95=4000, cut=0, max_tokens=32768, max_model_len=40960, rate=None, dispersion=1,
)  # fmt: skip


def deployment(split: Split = DP8, gangs: int = 1, prefill: Split | None = None) -> Deployment:
    engine = Engine.of(MODELS["deepseek-r1"], GPUS["H200"], split, "vllm")
    found = memory(engine, batched_tokens=8192, max_num_seqs=256)
    if prefill is None:
        return Deployment(engine, found, gangs)
    first = Engine.of(MODELS["deepseek-r1"], GPUS["H200"], prefill, "vllm")
    return Deployment(engine, found, gangs, first, memory(first, batched_tokens=8192, max_num_seqs=256), 1)


@pytest.mark.parametrize("split", [TP8, DP8])
@pytest.mark.parametrize("running", [1, 16, 128])
def test_little_s_law_holds_and_answers_follow_the_thought(split: Split, running: float) -> None:
    found = point(deployment(split, gangs=3), ASKED, running)
    assert found.rate * ASKED.output * found.tpot_mean == pytest.approx(3 * running)
    assert found.tokens_per_second == pytest.approx(found.rate * ASKED.output)
    assert found.ttfa_mean == pytest.approx(found.ttft_mean + ASKED.thinking * found.tpot_mean)
    assert found.ttfa_p95 == pytest.approx(found.ttft_mean + ASKED.thinking_p95 * found.tpot_mean)
    assert found.kv_used == pytest.approx(running / split.data * 2048 / deployment(split).memory.kv_tokens)


@pytest.mark.parametrize("split", [TP8, DP8])
def test_everything_gets_slower_with_more_running_and_throughput_grows(split: Split) -> None:
    points = [point(deployment(split), ASKED, running) for running in (1, 8, 32, 128)]
    for name in ("tpot_mean", "tpot_p95", "ttft_mean", "ttft_p95", "ttfa_p95", "prefill_load", "rate"):
        values = [getattr(each, name) for each in points]
        assert values == sorted(values), name
    assert all(each.tpot_p95 > each.tpot_mean and each.ttft_p95 > each.ttft_mean for each in points)


def test_prompts_of_a_wide_gang_share_its_steps_so_that_a_full_one_still_carries_more() -> None:
    wide = deployment(Split(data=32, expert=32))
    some, many = (point(wide, ASKED, 32 * each) for each in (64, 256))
    assert many.rate > 2 * some.rate


@pytest.mark.parametrize("split", [TP8, DP8])
@pytest.mark.parametrize("clients", [8, 64])
def test_it_agrees_with_the_closed_loop_model_at_the_same_batch(split: Split, clients: int) -> None:
    engine = deployment(split).engine
    closed = estimate(Pools(engine), Closed(1024, 2048, clients))
    found = point(deployment(split), ASKED, closed.batch)
    assert found.tpot_mean == pytest.approx(closed.tpot, rel=0.03)
    assert found.tokens_per_second == pytest.approx(closed.throughput, rel=0.05)


def test_surges_of_the_most_that_run_just_fit_the_cache() -> None:
    small = replace(ASKED, context=30000, context_square=2 * 30000**2)
    found = deployment(DP8)
    each = most_running(found, small) / 8
    held = each * 30000 + 1.645 * math.sqrt(each * 2) * 30000
    assert held == pytest.approx(found.memory.kv_tokens)
    assert surged(100, small) == pytest.approx(116.45)


def test_no_more_run_than_cuda_graphs_cover_and_clumped_arrivals_leave_more_room() -> None:
    short = replace(ASKED, context=10, context_square=100)
    each = most_running(deployment(DP8), short) / 8
    assert each + 1.645 * math.sqrt(each) == pytest.approx(GRAPHED)
    assert most_running(deployment(DP8), replace(short, dispersion=2.5)) < 8 * each


def test_a_prefill_pool_takes_prompts_off_the_decode_steps() -> None:
    apart, together = point(deployment(prefill=TP8), ASKED, 64), point(deployment(), ASKED, 64)
    assert apart.tpot_mean < together.tpot_mean
    assert apart.ttft_mean > 0.3  # the handover
    assert point(deployment(gangs=400, prefill=TP8), ASKED, 64).prefill_load > 1
    assert point(deployment(gangs=400, prefill=TP8), ASKED, 64).ttft_mean == math.inf


def test_prefix_hits_shorten_the_first_token() -> None:
    long = replace(ASKED, prompt=16000.0, prompt_p95=16000.0)
    assert point(deployment(), replace(long, cached=15000.0), 8).ttft_mean < point(deployment(), long, 8).ttft_mean
