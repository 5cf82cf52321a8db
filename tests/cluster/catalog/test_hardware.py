from __future__ import annotations

import pytest
from r1_cluster.catalog import GPUS, MODELS, gpu


@pytest.mark.parametrize("name", ["A100", "H20", "H100", "H200", "B200", "GB200", "MI300X"])
def test_every_gpu_has_more_flops_than_bytes_and_more_hbm_than_links(name: str) -> None:
    each = GPUS[name]
    assert each.rate("bfloat16") > 30 * each.bandwidth
    assert each.bandwidth > each.nvlink > each.network > 0
    assert 0 < each.usable_bytes() < each.memory_bytes


def test_fp8_runs_at_twice_bfloat16_where_there_are_units_and_at_its_rate_where_not() -> None:
    assert GPUS["H200"].rate("fp8_block") == pytest.approx(2 * GPUS["H200"].rate("bfloat16"), rel=0.01)
    assert GPUS["A100"].rate("fp8_block") == GPUS["A100"].rate("bfloat16")


@pytest.mark.parametrize("name", ["H200", "h200", "h200_sxm"])
def test_gpus_are_found_by_name_and_alias_whatever_the_case(name: str) -> None:
    assert gpu(name) is GPUS["H200"]


def test_an_unknown_gpu_is_refused_with_the_list() -> None:
    with pytest.raises(ValueError, match="'H300': choose one of A100, "):
        gpu("H300")


def test_r1_fits_eight_h200s_and_not_eight_h100s() -> None:
    weights = MODELS["deepseek-r1"].weight_bytes
    assert weights < 8 * GPUS["H200"].usable_bytes()
    assert weights > 8 * GPUS["H100"].usable_bytes()


def test_gpus_are_values_that_can_be_keys() -> None:
    assert {GPUS["H100"]: 1}[gpu("h100")] == 1
