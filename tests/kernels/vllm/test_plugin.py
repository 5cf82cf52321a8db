"""The plug-in in vLLM's own machinery, on a CPU, in a child process: vLLM patches what it imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from r1_kernels import vllm as plugin
from r1_kernels.vllm.settings import read

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def facts() -> Any:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("VLLM_", "R1_"))}
    environment |= {
        "OMP_NUM_THREADS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_PLUGINS": "",
        "CUDA_VISIBLE_DEVICES": "",
    }
    script = Path(__file__).parent / "probes" / "plugin.py"
    child = subprocess.run(
        [sys.executable, "-P", str(script)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert child.returncode == 0, child.stderr[-4000:]
    return json.loads(child.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["fp8_whole", "fp8_rank"])
def test_a_block_fp8_layer_takes_our_experts_and_gives_the_references_sums(facts: Any, name: str) -> None:
    assert facts[f"{name}_class"] == "OnTorch"
    assert facts[f"{name}_error"] < 3e-3


def test_the_expert_map_of_a_rank_reaches_our_experts(facts: Any) -> None:
    assert facts["maps"] == [False, True]


def test_a_bf16_layer_takes_our_experts_and_a_float32_one_keeps_vllms(facts: Any) -> None:
    assert facts["bf16_class"] == "OnTorch"
    assert facts["float32_class"] != "OnTorch"


def test_a_width_that_is_not_whole_blocks_is_refused_with_the_numbers(facts: Any) -> None:
    assert facts["odd_width"] == [False, "expert width 192 and hidden size 256 are not multiples of 128"]


def test_verify_serves_ours_where_both_agree_and_vllms_where_not(facts: Any) -> None:
    assert facts["verified"] == {"1.0078125": 1.0078125, "2.0": 1.0, "nan": 1.0}


def test_vllm_finds_the_plug_in_by_its_entry_point() -> None:
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    assert points["vllm.general_plugins"]["r1_kernels"] == "r1_kernels.vllm:register"


def test_off_is_the_default_and_imports_no_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("R1_KERNELS", raising=False)
    assert read() == "off"
    monkeypatch.setitem(sys.modules, "vllm.platforms", None)  # importing it would raise
    plugin.register()


def test_another_mode_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R1_KERNELS", "fast")
    with pytest.raises(ValueError, match="R1_KERNELS: expected off, on or verify, got 'fast'"):
        plugin.register()
