"""Whole fleets: deterministic, nothing lost, and near what queueing and the performance model say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from r1_cluster.catalog import gpu, model
from r1_cluster.perf.batch import Speculation
from r1_cluster.perf.layout import Split
from r1_cluster.perf.step import Engine
from r1_cluster.plan import Plan, PlanError
from r1_cluster.routing.scaling import ScalingRules
from r1_cluster.simulator import Autoscaling, Drain, Failure, Linear, Report, Scenario, Simulation, Slo
from r1_cluster.simulator.sketch import Sketch
from r1_cluster.workload import Closed, Fixed, Poisson, RequestClass, Workload, load

PLAN = """
version: r1.plan/v1
name: r1-h200
model: {name: deepseek-r1, checkpoint: deepseek-ai/DeepSeek-R1}
engine: {max_model_len: 65536, max_num_seqs: 256, max_num_batched_tokens: 8192}
fleet: {accelerator: H200, accelerators_per_node: 8}
pools:
  - gangs: 2
    layout: {tensor_parallel_size: 8, expert_parallel_size: 8}
"""
UNIFIED = Plan.from_yaml(PLAN)
WIDE = Plan.from_yaml(PLAN.replace("tensor_parallel_size: 8", "tensor_parallel_size: 1, data_parallel_size: 8"))
SMALL = Linear(step_s=0.02, sequence_s=1e-4, kv_token_s=2e-8, prompt_token_s=1e-4, kv_tokens=0)


def simulated(plan: Plan = UNIFIED, workload: str | Workload = "chat", rate: float | None = 6.0, **how: Any) -> Report:
    told = load(workload) if isinstance(workload, str) else workload
    return Simulation(plan, told.at_rate(rate), **{"requests": 400, **how}).run()


def fixed(prompt: int, thinking: int, answer: int, arrivals: Closed | Poisson) -> Workload:
    kind = RequestClass(
        name="all",
        prompt_tokens=Fixed(tokens=prompt),
        thinking_tokens=Fixed(tokens=thinking),
        answer_tokens=Fixed(tokens=answer),
    )
    return Workload(name="fixed", classes=(kind,), arrivals=arrivals)


@pytest.mark.parametrize("plan", [UNIFIED, WIDE], ids=["tp8", "dp8"])
@pytest.mark.parametrize("workload", ["chat", "agent"])
def test_the_same_seed_gives_the_same_numbers_and_another_gives_others(plan: Plan, workload: str) -> None:
    one, two, other = (simulated(plan, workload, seed=seed, requests=150).as_dict(0.0) for seed in (1, 1, 2))
    assert one == two
    assert one["ttft"] != other["ttft"]
    assert one["completed"] == one["requests"] == 150
    assert one["unfinished"] == 0


def test_every_token_that_was_asked_for_is_generated_once() -> None:
    requests = 300
    report = simulated(workload="math", rate=0.5, requests=requests)
    drawn = next(load("math").draw(np.random.default_rng(0)))
    wanted = int((drawn.thinking + drawn.answer)[:requests].sum())
    assert report.metrics.output_tokens == wanted
    assert report.metrics.cut == 0


def test_a_lone_request_takes_what_the_performance_model_says() -> None:
    report = simulated(workload=fixed(1000, 500, 500, Poisson(rate=0.001)), rate=None, requests=5)
    engine = Engine.of(model("deepseek-r1"), gpu("H200"), Split(tensor=8, expert=8), "vllm")
    assert report.metrics.tpot.mean == pytest.approx(engine.decode_seconds(1, 1500), rel=0.03)
    expected = engine.prefill_seconds(1000) + engine.overheads.ttft
    assert report.metrics.ttft.mean == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("drafts", [1, 2])
def test_a_lone_request_with_drafts_takes_what_the_performance_model_says(drafts: int) -> None:
    speculation = Speculation(drafts, 0.8)
    alone = fixed(1000, 500, 500, Poisson(rate=0.001))
    report = simulated(workload=alone, rate=None, requests=5, speculation=speculation)
    split = Split(tensor=8, expert=8)
    engine = Engine.of(model("deepseek-r1"), gpu("H200"), split, "vllm", speculation=speculation)
    assert report.metrics.tpot.mean == pytest.approx(engine.decode_seconds(1, 1500), rel=0.03)
    assert report.metrics.output_tokens == 5 * 1000


def test_drafts_are_refused_where_nothing_says_what_they_cost() -> None:
    with pytest.raises(PlanError, match="leave --drafts out"):
        Simulation(Plan.load("nano-tp1"), load("chat"), requests=1, speculation=Speculation(1, 0.8))


def test_a_closed_loop_obeys_littles_law() -> None:
    report = simulated(workload=fixed(1000, 600, 400, Closed(concurrency=32)), rate=None, requests=400)
    told = report.as_dict(0.0)
    held = told["requests_per_second"] * told["latency"]["mean"]
    assert held == pytest.approx(32, rel=0.12), "the ends of the run are not steady"


def test_saturation_is_reached_without_a_rate_and_nothing_is_refused() -> None:
    plan = UNIFIED.model_copy(update={"engine": UNIFIED.engine.model_copy(update={"max_num_seqs": 32})})
    report = simulated(plan, fixed(500, 300, 200, Closed()), rate=None, requests=300, gangs=1)
    assert not report.metrics.refused
    assert max(queued for _, _, _, queued in report.metrics.history) > 0
    assert report.metrics.ended == 300


def test_a_budget_shortens_thoughts_and_frees_the_fleet() -> None:
    free = simulated(workload="math", rate=0.5)
    tight = Simulation(UNIFIED, load("math").budgeted(2048).at_rate(0.5), requests=400).run()
    assert tight.metrics.thinking.quantile(0.99) == pytest.approx(2048, rel=0.02)
    assert tight.metrics.cut > 100
    assert (tight.metrics.total.mean or 0) < 0.6 * (free.metrics.total.mean or 0)


def test_an_overloaded_fleet_queues_then_refuses_by_name() -> None:
    limits = UNIFIED.limits.model_copy(update={"max_queued_requests": 60})
    plan = UNIFIED.model_copy(
        update={"limits": limits, "engine": UNIFIED.engine.model_copy(update={"max_num_seqs": 64})}
    )
    report = simulated(plan, "math", rate=100.0, requests=300, gangs=1)
    assert report.metrics.refused["fleet_saturated"] > 0
    assert report.metrics.ended + sum(report.metrics.refused.values()) == 300
    assert report.metrics.cut > 0, "budgets tighten before anything is refused"


def test_prompts_longer_than_the_context_are_refused_as_live() -> None:
    nano = Plan.load("nano-tp1")
    report = Simulation(nano, load("agent").at_rate(0.5), requests=100).run()
    assert report.metrics.refused["context_length_exceeded"] > 50


def test_a_warm_prefix_cache_saves_most_of_a_shared_prompt() -> None:
    agent = load("agent")
    few = agent.model_copy(update={"classes": tuple(c.model_copy(update={"prefix_groups": 4}) for c in agent.classes)})
    assert simulated(workload=few, requests=200).as_dict(0.0)["cached_prompt_share"] > 0.6
    cold = UNIFIED.model_copy(update={"engine": UNIFIED.engine.model_copy(update={"enable_prefix_caching": False})})
    assert simulated(cold, "agent", requests=100).as_dict(0.0)["cached_prompt_share"] == 0


@pytest.mark.parametrize("plan", [UNIFIED, WIDE], ids=["tp8", "dp8"])
def test_when_a_gang_fails_its_requests_go_on_elsewhere_and_all_end(plan: Plan) -> None:
    scenario = Scenario(failures=[Failure(at=30.0, gang=0, restart_s=20.0), Failure(at=31.0, gang=0)])
    report = simulated(plan, scenario=scenario)
    assert report.metrics.moved > 50
    assert report.metrics.ended == 400
    assert report.metrics.output_tokens == simulated(plan).metrics.output_tokens


def test_when_all_gangs_fail_requests_wait_for_one_to_come_back() -> None:
    both = [Failure(at=20.0, gang=g, restart_s=60.0) for g in (0, 1)]
    report = simulated(scenario=Scenario(failures=both), rate=2.0, requests=150)
    assert report.metrics.moved > 20
    assert report.metrics.ended + report.metrics.refused["fleet_saturated"] == 150, "none that had begun is lost"
    assert (report.metrics.ttft.quantile(0.99) or 0) > 30


def test_a_drained_fleet_leaves_the_rest_unfinished_and_says_so() -> None:
    drains = [Drain(at=10.0, gang=g, grace_s=5.0) for g in (0, 1)]
    told = simulated(scenario=Scenario(drains=drains)).as_dict(0.0)
    assert told["unfinished"] + told["completed"] + sum(told["refused"].values()) == 400
    assert told["unfinished"] + sum(told["refused"].values()) > 300


def test_a_drained_gang_takes_nothing_new_and_hands_over_what_still_runs() -> None:
    report = simulated(scenario=Scenario(drains=[Drain(at=20.0, gang=1, grace_s=10.0)]), rate=3.0)
    assert report.metrics.ended == 400
    assert report.metrics.moved > 0


def test_the_fleets_own_scaling_adds_gangs_under_load_and_takes_them_away_after() -> None:
    rules = ScalingRules(min_gangs=1, max_gangs=4, max_wait_s=1.0, up_after_s=5.0, down_after_s=20.0)
    scaling = Autoscaling(rules, start_s=20.0, grace_s=30.0)
    plan = UNIFIED.model_copy(update={"engine": UNIFIED.engine.model_copy(update={"max_num_seqs": 16})})
    report = simulated(plan, rate=4.0, gangs=1, scenario=Scenario(scaling=scaling))
    wanted = [gangs for _, gangs in report.metrics.scaled]
    assert max(wanted) > 1
    assert wanted[-1] < max(wanted)
    assert report.metrics.ended + sum(report.metrics.refused.values()) == 400


def test_a_tighter_service_level_is_kept_by_fewer() -> None:
    loose = simulated(scenario=Scenario(slo=Slo(ttft=10, tpot=1)))
    tight = simulated(scenario=Scenario(slo=Slo(ttft=0.2, tpot=0.035)))
    assert loose.good_share == 1.0
    assert tight.good_share < 0.9


def test_measured_step_times_take_the_place_of_the_model() -> None:
    report = simulated(profile=SMALL, rate=0.5, requests=50)
    assert 0.02 < (report.metrics.tpot.mean or 0) < 0.022


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("accelerator: H200", "accelerator: H900"), "plan r1-h200: unknown GPU"),
        (("DeepSeek-R1}", "DeepSeek-V9}"), "plan r1-h200: unknown model"),
        (("accelerator: H200", "accelerator: A100"), "0 KV tokens a rank"),
    ],
)
def test_a_plan_that_cannot_run_is_refused_with_the_reason(change: tuple[str, str], named: str) -> None:
    text = PLAN.replace("name: deepseek-r1,", "name: other,") if "V9" in change[1] else PLAN
    with pytest.raises(PlanError, match=named):
        simulated(Plan.from_yaml(text.replace(*change)))


def test_a_failure_of_a_gang_that_is_not_there_is_refused() -> None:
    with pytest.raises(PlanError, match="gang 7 cannot fail"):
        simulated(scenario=Scenario(failures=[Failure(1.0, 7)]))


def test_a_sketchs_quantiles_are_within_a_percent_of_the_exact_ones() -> None:
    values = np.exp(np.random.default_rng(5).normal(0, 2, 20_000))
    sketch = Sketch()
    for value in values.tolist():
        sketch.add(value)
    for q in (0.01, 0.5, 0.95, 0.999):
        assert sketch.quantile(q) == pytest.approx(np.quantile(values, q), rel=0.011)
    assert sketch.mean == pytest.approx(values.mean())
    assert sketch.tail()[-1][1] == 0.0
    assert Sketch().quantile(0.5) is Sketch().mean is None
    sketch.add(0.0)
    sketch.add(1e12)
    assert sketch.count == 20_002
