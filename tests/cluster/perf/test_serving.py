from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from r1_cluster.catalog import GPUS, MODELS
from r1_cluster.perf.batch import Batch
from r1_cluster.perf.layout import Split
from r1_cluster.perf.serving import Pools, Workload, estimate, transfer_seconds
from r1_cluster.perf.step import Engine

TP8 = Split(tensor=8, expert_tensor=8)
DP8 = Split(data=8, expert=8)


def engine(split: Split = TP8, framework: str = "sglang", gpu: str = "H200") -> Engine:
    return Engine.of(MODELS["deepseek-r1"], GPUS[gpu], split, framework)


UNIFIED = Pools(engine())
SEPARATE = Pools(engine(DP8), prefill=engine(), prefill_count=2)


@pytest.mark.parametrize("pools", [UNIFIED, SEPARATE, Pools(engine(DP8, "trtllm"), 2)])
@pytest.mark.parametrize("clients", [1, 8, 64, 512])
def test_littles_law_holds(pools: Pools, clients: int) -> None:
    load = Workload(1024, 1024, clients)
    found = estimate(pools, load)
    rate = found.throughput / load.output
    assert rate * (found.ttft + found.tpot * (load.output - 1)) == pytest.approx(clients, rel=0.01)


@pytest.mark.parametrize("pools", [UNIFIED, SEPARATE])
def test_more_clients_wait_longer_and_get_more_out(pools: Pools) -> None:
    found = [estimate(pools, Workload(2048, 1024, clients)) for clients in (1, 4, 16, 64, 256)]
    for measure in ("ttft", "tpot", "throughput"):
        values = [getattr(each, measure) for each in found]
        assert all(later >= 0.999 * earlier for earlier, later in pairwise(values)), measure


def test_one_client_decodes_at_the_engines_own_pace() -> None:
    found = estimate(UNIFIED, Workload(64, 4096, 1))
    assert found.tpot == pytest.approx(engine().decode_seconds(1, 64 + 2048), rel=0.02)


def test_prompts_slow_the_tokens_of_a_unified_engine_and_not_of_a_separate_pool() -> None:
    clients = 64
    unified = estimate(UNIFIED, Workload(8192, 256, clients))
    assert unified.tpot > 1.5 * engine().decode_seconds(unified.batch, 8192 + 128)
    separate = estimate(SEPARATE, Workload(8192, 256, clients))
    assert separate.tpot == pytest.approx(engine(DP8).decode_seconds(separate.batch, 8192 + 128), rel=0.01)


def test_a_saturated_prefill_pool_queues_and_says_so() -> None:
    small = replace(SEPARATE, prefill_count=1)
    found = estimate(small, Workload(8192, 256, 512))
    assert found.queue_bound
    assert found.ttft > 10
    assert not estimate(small, Workload(8192, 256, 4)).queue_bound


def test_a_full_kv_cache_bounds_the_batch_and_the_rest_waits() -> None:
    load = Workload(32768, 8192, 512)
    found = estimate(UNIFIED, load)
    assert found.batch <= engine().kv_tokens() / (32768 + 4096) * 1.01
    assert found.queue_bound
    assert found.ttft > estimate(UNIFIED, replace(load, concurrency=8)).ttft


def test_prefix_hits_shorten_the_first_token() -> None:
    load = Workload(16384, 512, 16)
    assert estimate(UNIFIED, replace(load, cached=14000)).ttft < estimate(UNIFIED, load).ttft


def test_replicas_share_the_clients() -> None:
    one = estimate(UNIFIED, Workload(1024, 1024, 16))
    four = estimate(replace(UNIFIED, decode_count=4), Workload(1024, 1024, 64))
    assert four.tpot == pytest.approx(one.tpot, rel=1e-6)
    assert four.throughput == pytest.approx(4 * one.throughput, rel=1e-6)


def test_kv_transfer_takes_the_cache_over_the_port_of_each_rank() -> None:
    whole = transfer_seconds(engine(Split(data=8, expert=8)), 8192)
    assert whole == pytest.approx(8192 * 61 * 1152 / (50e9 * 0.8))
    assert transfer_seconds(engine(), 8192) == pytest.approx(whole / 8)


@pytest.mark.parametrize("bad", [(0, 1, 1, 0), (1, 0, 1, 0), (1, 1, 0, 0), (8, 1, 1, 8), (8, 1, 1, -1)])
def test_a_workload_that_makes_no_sense_is_refused(bad: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        Workload(*bad)


# Published wide expert-parallel decodes (R1/V3, FP8 weights): GPU, framework, ranks, sequences a rank, mean context,
# KV dtype, TPOT in seconds, and where from.
PUBLISHED = [
    ("H800", "sglang", 144, 88, 4989, "fp8", 0.0475),  # DeepSeek open-infra-index, day 6: 1,850 tok/s/GPU, 45-50 ms
    ("H800", "sglang", 128, 128, 4096, "fp8", 0.055),  # DeepSeek profile-data: 2,325 tok/s/GPU
    ("H100", "sglang", 72, 256, 2000, "bfloat16", 0.096),  # LMSYS, May 2025: 2,785 tok/s/GPU, 92-100 ms
    ("H200", "vllm", 32, 256, 3000, "bfloat16", 0.117),  # vLLM: 2,180 tok/s/GPU
    ("H200", "vllm", 72, 256, 3000, "bfloat16", 0.124),
    ("H200", "vllm", 96, 256, 3000, "bfloat16", 0.130),
]


@pytest.mark.parametrize(("gpu", "framework", "ranks", "each", "context", "kv_dtype", "published"), PUBLISHED)
def test_published_wide_expert_parallel_decodes_are_met_within_15_percent(
    gpu: str, framework: str, ranks: int, each: int, context: int, kv_dtype: str, published: float
) -> None:
    dtype = "fp8" if kv_dtype == "fp8" else "bfloat16"
    wide = Engine.of(
        MODELS["deepseek-r1"],
        GPUS[gpu],
        Split(data=ranks, expert=ranks),
        framework,
        kv_dtype=dtype,  # type: ignore[arg-type]
    )
    assert wide.seconds(Batch.decodes(each * ranks, context)) == pytest.approx(published, rel=0.15)
