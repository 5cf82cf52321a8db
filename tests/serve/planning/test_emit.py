"""A plan in the words of Helm, vLLM and SGLang."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from r1_cluster.catalog import model
from r1_cluster.plan import Plan
from r1_cluster.planner import Outcome, PlanningError, Request, parse_fleet, plan
from r1_cluster.workload import load
from r1_serve.planning.emit import emit


def planned(gpus: str = "16xH200", workload: str = "math", name: str = "r1", **options: Any) -> Outcome:
    return plan(Request(model(name), parse_fleet(gpus), load(workload), **options))


def wide() -> Outcome:
    """Two data-parallel ranks of eight tensor ranks, so that the gang spans two nodes."""
    made = planned()
    pool = made.plan.pools[0].model_dump() | {
        "gangs": 1,
        "layout": {"tensor_parallel_size": 8, "data_parallel_size": 2, "expert_parallel_size": 16},
    }
    value = made.plan.model_dump(mode="json") | {"pools": [pool]}
    return Outcome(Plan.model_validate_json(json.dumps(value)), made.fleet)


def deep() -> Outcome:
    made = planned()
    pool = made.plan.pools[0].model_dump() | {
        "gangs": 1,
        "layout": {"tensor_parallel_size": 8, "pipeline_parallel_size": 2},
    }
    return Outcome(
        Plan.model_validate_json(json.dumps(made.plan.model_dump(mode="json") | {"pools": [pool]})), made.fleet
    )


def commands(kind: str, outcome: Outcome) -> list[str]:
    text = emit(kind, outcome.plan, outcome.fleet)
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_helm_values_hold_the_plan_whole_and_what_to_ask_kubernetes_for() -> None:
    made = planned()
    values = yaml.safe_load(emit("helm-values", made.plan, made.fleet))
    assert set(values) == {"plan", "gpu"}
    assert values["gpu"] == {"type": "H200", "perNode": 8, "nodes": 2}
    assert Plan.from_yaml(yaml.safe_dump(values["plan"])) == made.plan


def test_there_is_one_line_for_every_node_of_every_gang() -> None:
    assert len(commands("vllm-command", planned("8xH200"))) == 1
    assert len(commands("vllm-command", wide())) == 2
    assert len(commands("sglang-command", planned("32xH100", workload="chat"))) == 4
    assert [line.count("--headless") for line in commands("vllm-command", wide())] == [0, 1]


def test_sglang_counts_attention_ranks_in_tp_and_those_apart_in_dp() -> None:
    first, second = commands("sglang-command", wide())
    assert "--tp-size 16 --dp-size 2 --enable-dp-attention --ep-size 16 --moe-a2a-backend deepep" in first
    assert "--nnodes 2 --node-rank 1 --dist-init-addr $HEAD:20000" in second


def test_separate_pools_name_their_side() -> None:
    made = planned(workload="agent", pools="separate")
    sides = [line.partition("--disaggregation-mode ")[2].split()[0] for line in commands("sglang-command", made)]
    assert set(sides) == {"prefill", "decode"}
    assert "proxy in front" in emit("vllm-command", made.plan, made.fleet)
    with pytest.raises(PlanningError, match="the chart runs unified pools"):
        emit("helm-values", made.plan, made.fleet)


def drafting() -> Outcome:
    made = wide()
    engine = made.plan.engine.model_copy(
        update={"num_speculative_tokens": 2, "all2all_backend": "deepep_high_throughput"}
    )
    return Outcome(made.plan.model_copy(update={"engine": engine}), made.fleet)


def test_sglang_drafts_as_many_tokens_one_after_the_other() -> None:
    flags = "--speculative-algorithm EAGLE --speculative-eagle-topk 1 --speculative-num-steps 2"
    assert all(f"{flags} --speculative-num-draft-tokens 3" in line for line in commands("sglang-command", drafting()))


@pytest.mark.parametrize("kind", ["vllm-command", "sglang-command"])
def test_a_rehearsal_is_no_command_of_another_tool(kind: str) -> None:
    made = planned("1xcpu", "chat", "nano")
    with pytest.raises(PlanningError, match="r1 rehearse"):
        emit(kind, made.plan, made.fleet)


def test_a_budget_is_said_to_be_the_routers() -> None:
    made = planned(budgets=(4096,))
    assert "thinking budget of 4096 tokens is kept by the router" in emit("vllm-command", made.plan, made.fleet)


@pytest.mark.e2e
def test_vllm_s_own_parser_reads_every_line_as_it_was_meant() -> None:
    fp8 = planned(kv_dtypes=("fp8",))
    outcomes = (
        fp8,
        wide(),
        deep(),
        drafting(),
        planned(workload="agent", pools="separate"),
        planned("8xH100", "chat", "distill-qwen-32b"),
    )
    lines = [line.replace("$HEAD", "10.0.0.1") for each in outcomes for line in commands("vllm-command", each)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "CUDA_VISIBLE_DEVICES": ""}
    script = Path(__file__).parent / "probes" / "parse.py"
    child = subprocess.run(
        [sys.executable, "-P", str(script)], input="\n".join(lines), env=environment, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr[-2000:]
    understood = json.loads(child.stdout.splitlines()[-1])
    assert len(understood) == len(lines)
    for each in understood:
        assert each["gpu_memory_utilization"] == 0.9
        assert each["max_num_batched_tokens"] == 8192
        assert each["reasoning_parser"] == ("" if each["headless"] else "deepseek_r1")
    assert understood[0]["kv_cache_dtype"] == "fp8"
    assert understood[0]["max_num_seqs"] == fp8.plan.engine.max_num_seqs
    at = len(commands("vllm-command", fp8))
    head, second, stage0, stage1 = understood[at : at + 4]
    assert (head["data_parallel_size"], head["data_parallel_size_local"], head["enable_expert_parallel"]) == (
        2,
        1,
        True,
    )
    assert (second["data_parallel_start_rank"], second["headless"]) == (1, True)
    assert [(each["nnodes"], each["node_rank"], each["pipeline_parallel_size"]) for each in (stage0, stage1)] == [
        (2, 0, 2), (2, 1, 2),
    ]  # fmt: skip
    drafts = {"method": "mtp", "num_speculative_tokens": 2}
    assert [each["speculative_config"] for each in understood[at + 4 : at + 6]] == [drafts, drafts]
    assert [each["all2all_backend"] for each in understood[at : at + 6 : 4]] == [
        "deepep_low_latency",
        "deepep_high_throughput",
    ]
    assert understood[-1]["model"] == "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B"
    assert any(each["kv_connector"] == "NixlConnector" for each in understood)
