"""What of the benchmark can be known without a GPU: its routing, its floor, its table, and how it refuses."""

from __future__ import annotations

import pytest
import torch
from r1_kernels.bench import __main__ as bench
from r1_kernels.bench.tune import candidates
from r1_kernels.bench.workload import bytes_touched, route
from r1_kernels.cases import make
from r1_kernels.fused_moe.tiles import Shape, choose


def test_power_law_routing_gives_each_token_different_experts_and_some_experts_most() -> None:
    ids = route(512, torch.Generator().manual_seed(1))
    assert ids.shape == (512, 8)
    assert all(len(set(row)) == 8 for row in ids.tolist())
    load = torch.bincount(ids.flatten().long(), minlength=256).sort(descending=True).values
    assert load[:26].sum() > 0.4 * load.sum()  # a tenth of the experts
    even = route(512, torch.Generator().manual_seed(1), alpha=0.0)
    assert torch.bincount(even.flatten().long(), minlength=256).max() < load[0] / 4


def test_the_floor_counts_each_chosen_local_expert_once() -> None:
    case = make(1, fp8=True)
    expert = 2 * 128 * 256 + 256 * 128 + 4 * (2 * 2 + 2 * 1)
    assert bytes_touched(case) == 4 * expert + 256 * 4
    assert sum(bytes_touched(case.on_rank(r, 4)) - 256 * 4 for r in range(4)) == 4 * expert


def test_without_a_gpu_it_is_one_error_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert bench.main([]) == 2
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err.startswith("error: no CUDA GPU here")


def test_the_table_shows_losses_and_what_was_not_measured() -> None:
    rows = [
        {
            "layout": "TP8",
            "tokens": 1,
            "our_us": 50.0,
            "vllm_us": 40.0,
            "plain_us": 60.0,
            "floor_us": 10.0,
            "tiles": "few",
        },
        {
            "layout": "EP8",
            "tokens": 8,
            "our_us": 50.0,
            "vllm_us": None,
            "plain_us": 75.0,
            "floor_us": 25.0,
            "tiles": "few",
        },
    ]
    names = ("gpu", "command", "date", "triton", "torch", "vllm", "bandwidth_TBps", "routing_us")
    text = bench.markdown(dict.fromkeys(names, "x") | {"rows": [row | {"tiles": "few"} for row in rows]})
    assert "| TP8 | 1 | 50.0 | 40.0 | 60.0 | 10.0 | 0.80 | 5.00 | few |" in text
    assert "| EP8 | 8 | 50.0 | – | 75.0 | 25.0 | – | 2.00 | few |" in text


@pytest.mark.parametrize("tokens", [1, 64, 4096])
def test_tuning_candidates_differ_and_keep_the_kernels_rules(tokens: int) -> None:
    start = choose(Shape(tokens, 8, 256, 256, 7168, 256, True))
    found = list(candidates(start))
    assert len(set(found)) > 20
    assert all(tiles.gate_up.block_m == tiles.down.block_m for tiles in found)
    assert all((tiles.regime == "few") == (start.regime == "few") for tiles in found)
