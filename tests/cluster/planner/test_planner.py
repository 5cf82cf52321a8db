"""From a question to a Plan: what is chosen, what is refused, and that the reasons can be redone by hand."""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import pytest
from r1_cluster.catalog import MODELS, model
from r1_cluster.perf.batch import Speculation
from r1_cluster.plan import Plan
from r1_cluster.planner import Objective, Outcome, PlanningError, Request, parse_fleet, parse_slo, plan
from r1_cluster.planner.layouts import splits
from r1_cluster.simulator.costs import costs_of
from r1_cluster.workload import load


@cache  # seconds each, and several tests ask the same
def ask(name: str = "r1", gpus: str = "16xH200", workload: str = "math", slo: str = "", **options: Any) -> Outcome:
    return plan(Request(model(name), parse_fleet(gpus), load(workload), parse_slo(slo), **options))


def test_sixteen_h200_are_planned_within_seconds_and_hold_the_slo() -> None:
    begun = time.process_time()
    found = ask.__wrapped__(slo="tpot_p95=50ms")
    assert time.process_time() - begun < 5
    made = found.plan
    assert made.predicted is not None
    assert made.predicted.tpot_p95 <= 0.05
    assert made.accelerators == 16
    assert made.fleet.accelerators_per_node == 8
    assert Plan.from_yaml(made.to_yaml()) == made


def test_what_is_predicted_does_not_change_who_may_attach() -> None:
    made = ask().plan
    bare = made.model_copy(update={"predicted": None, "memory": (), "reasons": (), "name": "other"})
    assert bare.hash == made.hash


@pytest.mark.parametrize("objective", list(Objective))
def test_the_choice_is_within_five_percent_of_the_best_by_its_objective(objective: Objective) -> None:
    found = ask(slo="tpot_p95=60ms", objective=objective)
    assert found.found is not None
    assert found.chosen is not None
    unified = [each for each in found.found.candidates if not each.separate]
    if objective is Objective.THROUGHPUT:
        assert found.chosen.most.tokens_per_second * 1.05 >= max(each.most.tokens_per_second for each in unified)
    elif objective is Objective.LATENCY:
        assert found.chosen.at.ttfa_p95 <= 1.05 * min(each.at.ttfa_p95 for each in unified)
        assert found.chosen.at.rate == pytest.approx(1.0, rel=0.01)  # the workload's
    else:
        hours = [each.gpu_hours_per_million_tokens for each in unified]
        assert found.chosen.gpu_hours_per_million_tokens <= 1.05 * min(hours)
        assert found.chosen.gpus == 8


def test_nothing_on_the_front_is_beaten_in_everything() -> None:
    found = ask(slo="tpot_p95=60ms").found
    assert found is not None
    front = [(-each.per_gpu, each.at.ttfa_p95, each.gpus) for each in found.front]
    assert len(front) > 1
    for mine in front:
        assert not any(all(a <= b for a, b in zip(other, mine, strict=True)) and other != mine for other in front)


def test_the_fewest_gpus_grow_with_the_rate_and_hold_it() -> None:
    sizes = []
    for rate in (0.5, 4.0, 16.0):
        found = ask(gpus="512xH200", slo="tpot_p95=50ms", rate=rate, smallest=True)
        assert found.chosen is not None
        assert found.chosen.most.rate >= rate
        assert found.plan.accelerators == found.fleet.count
        sizes.append(found.plan.accelerators)
    assert sizes == sorted(sizes)
    assert sizes[0] == 8
    assert sizes[-1] > 16


def test_a_budget_is_tightened_only_when_the_slo_cannot_be_held_without() -> None:
    loose, tight = ask(slo="ttfa_p95=900s").plan, ask(slo="ttfa_p95=90s").plan
    assert loose.limits.thinking.ceiling is None
    assert tight.limits.thinking.ceiling == 4096
    assert tight.limits.thinking.high == 4096
    assert (
        "thinking budget 4,096: with none, 16,384, 8,192 no layout holds ttfa_p95=90 s at 1 requests/s"
        in tight.reasons[0]
    )
    assert tight.engine.max_model_len < loose.engine.max_model_len


def test_a_fleet_too_small_for_the_workload_says_how_much_it_carries() -> None:
    made = ask(gpus="8xH200", workload="chat", slo="ttfa_p95=30s", budgets=(None,)).plan
    assert made.predicted is not None
    assert made.predicted.max_requests_per_second < 4
    assert "of the workload's 4 requests/s within ttfa_p95=30 s: --min-gpus" in made.reasons[0]


def test_the_kv_cache_stays_at_full_precision_unless_fp8_pays() -> None:
    assert ask(kv_dtypes=("bfloat16",)).plan.engine.kv_cache_dtype is None
    assert ask(kv_dtypes=("fp8",)).plan.engine.kv_cache_dtype == "fp8"
    assert ask(gpus="8xMI300X").plan.engine.kv_cache_dtype is None  # no MLA kernel with an FP8 cache there


def test_drafts_are_planned_when_asked_for_and_told_of_when_not() -> None:
    without, some, any_of = (ask(slo="tpot_p95=50ms", drafts=drafts) for drafts in ((0,), (1,), (0, 1)))
    assert without.plan.engine.num_speculative_tokens is None
    assert some.plan.engine.num_speculative_tokens == 1
    assert Plan.from_yaml(some.plan.to_yaml()) == some.plan
    assert any_of.plan.hash == some.plan.hash, "drafts pay here, by far"
    told = [" ".join(each.plan.reasons) for each in (without, some)]
    assert "with a draft a step, 85% of them taken (--drafts 1) the same layout carries 1" in told[0]
    assert "1.85 tokens a step" in told[1]
    assert "without drafts the same layout carries" in told[1]


def test_a_plan_without_drafts_simulated_with_some_has_the_memory_of_one_with_them() -> None:
    without, some = (ask(slo="tpot_p95=50ms", drafts=(drafts,)).plan for drafts in (0, 1))
    assert without.pools == some.pools
    asked = costs_of(without, without.pools[0], speculation=Speculation(1, 0.85))
    assert asked.kv_tokens == pytest.approx(some.memory[0].kv_tokens, rel=0.02)
    assert costs_of(some, some.pools[0]).kv_tokens == some.memory[0].kv_tokens
    off = costs_of(some, some.pools[0], speculation=Speculation(0, 0.85))
    assert off.kv_tokens == pytest.approx(without.memory[0].kv_tokens, rel=0.02)


def test_drafts_that_are_hardly_ever_taken_are_left_out() -> None:
    assert ask(slo="tpot_p95=50ms", drafts=(0, 1), acceptance=0.02).plan.engine.num_speculative_tokens is None
    distill = ask("r1-distill-qwen-32b", "8xH100", "chat", drafts=(0, 1)).plan  # which has no layer for them
    assert distill.engine.num_speculative_tokens is None


def test_prefill_and_decode_pools_are_planned_when_asked_for() -> None:
    made = ask(workload="agent", pools="separate").plan
    assert [pool.role for pool in made.pools] == ["prefill", "decode"]
    assert [each.pool for each in made.memory] == ["prefill", "decode"]
    assert made.separate
    assert not ask(workload="agent").plan.separate


@pytest.mark.parametrize("name", [name for name in MODELS if "distill" in name])
def test_every_distill_fits_a_node_without_experts_or_data_ranks(name: str) -> None:
    made = ask(name, "8xH100", "chat", slo="tpot_p95=40ms").plan
    layout = made.pools[0].layout
    assert (layout.data_parallel_size, layout.expert_parallel_size) == (1, 1)
    assert made.accelerators <= 8


def test_a_rack_is_one_domain_and_the_plan_says_so() -> None:
    made = ask(gpus="72xGB200", slo="tpot_p95=50ms").plan
    assert made.fleet.nvlink_domain == 72
    assert made.fleet.accelerators_per_node == 4
    allowed, _ = splits(MODELS["deepseek-r1"], parse_fleet("72xGB200"))
    assert max(split.tensor for split in allowed) == 64


def test_tensor_parallelism_stays_in_the_nvlink_domain_and_experts_stay_whole_blocks() -> None:
    allowed, rejected = splits(MODELS["deepseek-r1"], parse_fleet("32xH200"))
    assert max(split.tensor for split in allowed) == 8
    assert "TP16: NVLink joins 8 GPUs, and tensor parallelism does not leave them" in {each.reason for each in rejected}
    _, qwen = splits(MODELS["r1-distill-qwen-7b"], parse_fleet("8xH100"))
    assert [each.reason for each in qwen] == ["TP8: 28 attention heads do not divide by 8"]


@pytest.mark.parametrize(
    ("question", "named"),
    [
        ({"gpus": "8xH100"}, r"does not fit 8xH100: TP8 on 8xH100: 681 GB of weights \+ 51.2 GB of workspace > 8 x 77"),
        ({"slo": "ttfa_p95=2s"}, r"holds ttfa_p95=2 s, even with thoughts cut at 4,096 tokens. Nearest: 2 x TP8: TTFA"),
        ({"slo": "ttfa_p95=2s", "budgets": (None,)}, "holds ttfa_p95=2 s. Nearest"),
        ({"rate": 1000.0}, r"carries .* requests/s .*, not 1e\+03"),
        ({"max_context": 3000}, "no room to think"),
        ({"gpus": "8xcpu"}, "only r1-nano runs on CPU"),
        ({"name": "nano", "gpus": "1xcpu", "slo": "tpot_p95=1s"}, "nothing is predicted"),
        ({"gpus": "8xH200", "pools": "separate"}, "--pools any"),
        ({"name": "r1-distill-qwen-32b", "drafts": (1,)}, "no layer that drafts tokens: leave --drafts out"),
        ({"name": "nano", "gpus": "1xcpu", "drafts": (1,)}, "see the plan nano-mtp"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_the_nearest_miss(question: dict[str, Any], named: str) -> None:
    with pytest.raises(PlanningError, match=named) as refused:
        ask(**question)
    assert "\n" not in str(refused.value)


def test_r1_nano_on_cpu_is_a_replica_a_rank_with_nothing_predicted() -> None:
    made = ask("nano", "2xcpu", "chat").plan
    assert made.predicted is None
    assert (made.pools[0].gangs, str(made.pools[0].layout)) == (2, "TP1")
    assert made.memory[0].kv_tokens == (1 << 29) // (4 * 576 * 4)


def test_the_reasons_sums_come_out() -> None:
    found = ask(slo="tpot_p95=50ms")
    chosen = found.chosen
    assert chosen is not None
    memory = found.plan.memory[0]
    assert memory.weights + memory.workspace + memory.kv_cache == pytest.approx(0.9 * memory.total, rel=1e-6)
    text = " ".join(found.plan.reasons)
    assert f"{memory.kv_tokens:,} tokens a rank" in text
    assert f"{chosen.most.rate:.3g} requests/s" in text


def test_the_price_is_gpu_hours_times_it() -> None:
    predicted = ask(price=3.0).plan.predicted
    assert predicted is not None
    assert predicted.cost_per_million_tokens == pytest.approx(3 * predicted.gpu_hours_per_million_tokens, rel=1e-3)
    seconds = 1e6 / predicted.output_tokens_per_second_per_gpu
    assert predicted.gpu_hours_per_million_tokens == pytest.approx(seconds / 3600, rel=1e-3)
