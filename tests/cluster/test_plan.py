"""The Plan: what it accepts, what it refuses and how it says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError
from r1_cluster.plan import Layout, Plan, PlanError, shipped

MINIMAL = """
name: small
model: {name: r1-nano, checkpoint: "builtin:r1-nano"}
engine: {max_model_len: 2048}
fleet: {accelerator: H200}
"""


@pytest.mark.parametrize("name", shipped())
def test_shipped_plans_load_under_their_file_name_and_round_trip(name: str) -> None:
    plan = Plan.load(name)
    assert plan.name == name
    assert Plan.from_yaml(plan.to_yaml()) == plan


@pytest.mark.parametrize(
    ("name", "layout", "accelerators"),
    [("nano-tp1", "TP1", 1), ("nano-dp2-ep2", "TP1xDP2xEP2", 2), ("nano-tp2-ep2", "TP2xEP2", 2),
     ("nano-tp2-dp2-ep4", "TP2xDP2xEP4", 4)],
)  # fmt: skip
def test_a_layout_names_itself_and_counts_its_accelerators(name: str, layout: str, accelerators: int) -> None:
    plan = Plan.load(name)
    assert str(plan.pools[0].layout) == layout
    assert plan.accelerators == accelerators


def test_shipped_plans_have_different_hashes() -> None:
    assert len({Plan.load(name).hash for name in shipped()}) == len(shipped())


def test_the_hash_ignores_name_reasons_and_the_order_of_keys() -> None:
    plan = Plan.from_yaml(MINIMAL)
    shuffled = "\n".join(reversed(MINIMAL.strip().splitlines())).replace("small", "other") + "\nreasons: [because]\n"
    assert Plan.from_yaml(shuffled).hash == plan.hash


def test_the_hash_follows_everything_that_changes_answers_or_limits() -> None:
    plan = Plan.from_yaml(MINIMAL)
    assert Plan.from_yaml(MINIMAL.replace("2048", "4096")).hash != plan.hash


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("2048", "-1"), "engine.max_model_len"),
        (("2048", '"2048"'), "engine.max_model_len"),
        (("{max_model_len: 2048}", "{}"), "engine.max_model_len: Field required"),
        (("2048}", "2048, speed: 9}"), "engine.speed"),
        (("small", "Small Plan"), "name"),
        (("{accelerator: H200}", "{accelerator: cpu}"), "kv_cache_gib_per_rank"),
        (("{accelerator: H200}", "{accelerator: H200, kv_cache_gib_per_rank: 1.0}"), "kv_cache_gib_per_rank"),
        (("2048}", "2048, max_num_seqs: 9000}"), "max_num_batched_tokens is 8192, below max_num_seqs 9000"),
        (("2048}", "2048, gpu_memory_utilization: 1.5}"), "engine.gpu_memory_utilization"),
        (("2048}", "2048, num_speculative_tokens: 0}"), "engine.num_speculative_tokens"),
        (("2048}", "2048, max_num_seqs: 5000, num_speculative_tokens: 1}"), "below max_num_seqs 5000 x 2 with their"),
        (("2048}", "2048, all2all_backend: carrier_pigeon}"), "engine.all2all_backend"),
    ],
)
def test_a_complaint_names_the_source_and_the_field(change: tuple[str, str], named: str) -> None:
    with pytest.raises(PlanError) as refused:
        Plan.from_yaml(MINIMAL.replace(*change), source="mine.yaml")
    assert str(refused.value).startswith("mine.yaml: ")
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "- a list", "a: b: c", "just words", "\t- x"])
def test_what_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match=r"^plan: (not YAML|expected a mapping)"):
        Plan.from_yaml(text)


def test_an_unknown_plan_is_told_which_there_are() -> None:
    with pytest.raises(PlanError, match="nano-tp1"):
        Plan.load("nano-tp9")


def test_a_file_is_loaded_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(MINIMAL)
    assert Plan.load(str(path)).name == "small"


@pytest.mark.parametrize("experts", [2, 3, 8])
def test_experts_are_split_over_the_whole_gang_or_not_at_all(experts: int) -> None:
    with pytest.raises(ValidationError, match="use 1 or 4"):
        Layout(tensor_parallel_size=2, data_parallel_size=2, expert_parallel_size=experts)


def test_tensor_parallelism_does_not_leave_its_node() -> None:
    pools = "pools: [{layout: {tensor_parallel_size: 16}}]"
    with pytest.raises(PlanError, match=r"pools.main.layout.tensor_parallel_size is 16"):
        Plan.from_yaml(f"{MINIMAL}\n{pools}")


def test_tensor_parallelism_reaches_as_far_as_an_nvlink_domain() -> None:
    pools = "pools: [{layout: {tensor_parallel_size: 16}}]"
    rack = MINIMAL.replace("{accelerator: H200}", "{accelerator: GB200, accelerators_per_node: 4, nvlink_domain: 72}")
    assert Plan.from_yaml(f"{rack}\n{pools}").accelerators == 16
    with pytest.raises(PlanError, match="more than the 72 accelerators of an NVLink domain"):
        Plan.from_yaml(f"{rack}\n{pools.replace('16', '128')}")


@pytest.mark.parametrize("roles", ["prefill", "decode", "unified, prefill", "unified, prefill, decode"])
def test_prefill_and_decode_pools_come_in_pairs(roles: str) -> None:
    pools = ", ".join(f"{{name: p{i}, role: {role}}}" for i, role in enumerate(roles.split(", ")))
    with pytest.raises(PlanError, match="either all unified, or prefill and decode"):
        Plan.from_yaml(f"{MINIMAL}\npools: [{pools}]")


def test_fields_that_came_later_do_not_rename_the_plans_before_them() -> None:
    assert {name: Plan.load(name).hash for name in shipped()} == {
        "nano-mtp": "2fa5ac8281f2",
        "nano-dp2-ep2": "bbe433a88b24",
        "nano-tp1": "3b7cae5f40a0",
        "nano-tp2-dp2-ep4": "e4e708446e4a",
        "nano-tp2-ep2": "229b879bb83f",
    }
    for later in ("kv_cache_dtype: fp8", "num_speculative_tokens: 1", "all2all_backend: deepep_low_latency"):
        assert Plan.from_yaml(MINIMAL.replace("2048", f"2048, {later}")).hash != Plan.from_yaml(MINIMAL).hash


def test_deepep_is_not_rehearsed_on_a_cpu() -> None:
    on_cpu = MINIMAL.replace("H200", "cpu, kv_cache_gib_per_rank: 1.0")
    with pytest.raises(PlanError, match="all2all_backend deepep_low_latency needs GPUs"):
        Plan.from_yaml(on_cpu.replace("2048", "2048, all2all_backend: deepep_low_latency"))


def test_a_step_brings_at_most_the_drafts_and_a_token() -> None:
    assert Plan.load("nano-tp1").engine.tokens_per_step == 1
    assert Plan.load("nano-mtp").engine.tokens_per_step == 2


def test_an_alias_moves_without_another_hash_and_a_name_does_not() -> None:
    aliased = Plan.from_yaml(MINIMAL.replace("model: {", "model: {aliases: [best], "))
    assert aliased.model.aliases == ("best",)
    assert aliased.hash == Plan.from_yaml(MINIMAL).hash
    assert Plan.from_yaml(MINIMAL.replace("model: {name: ", "model: {name: other-")).hash != aliased.hash


def test_pools_have_names_of_their_own() -> None:
    with pytest.raises(PlanError, match="pools: names must differ"):
        Plan.from_yaml(f"{MINIMAL}\npools: [{{name: a}}, {{name: a}}]")


def test_a_plan_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Plan.from_yaml(MINIMAL).name = "other"


def test_the_room_imports_no_engine() -> None:
    code = "import sys, r1_cluster.plan; sys.exit(bool({'torch', 'vllm', 'ray', 'grpc'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
