"""Bad input is refused with what came and what is expected, before anything is launched."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from r1_kernels.fused_moe.op import Experts, fused_moe
from r1_kernels.quant.op import quantise, swiglu_quantise
from r1_kernels.routing.op import route, sort_slots

FP8 = torch.float8_e4m3fn
E, H, WIDTH, M, T = 4, 256, 128, 3, 2


def good() -> dict[str, Any]:
    return {
        "x": torch.zeros(M, H, dtype=FP8),
        "experts": Experts(
            torch.zeros(E, 2 * WIDTH, H, dtype=FP8),
            torch.zeros(E, H, WIDTH, dtype=FP8),
            torch.ones(E, 2, 2),
            torch.ones(E, 2, 1),
        ),
        "weights": torch.ones(M, T),
        "ids": torch.tensor([[0, 1]] * M, dtype=torch.int32),
        "x_scale": torch.ones(M, 2),
    }


def call(**changed: Any) -> torch.Tensor:
    a = good()
    a["experts"] = replace(
        a["experts"], **{k: changed.pop(k) for k in list(changed) if k.startswith(("w", "ex")) and k != "weights"}
    )
    a |= changed
    return fused_moe(a["x"], a["experts"], a["weights"], a["ids"], x_scale=a["x_scale"])


CASES: list[tuple[dict[str, Any], str]] = [
    ({"x": torch.zeros(M, H)}, r"x: expected torch.float8_e4m3fn, got torch.float32"),
    ({"x": torch.zeros(M, 128, dtype=FP8)}, r"x: expected shape \[\*, 256\], got \[3, 128\]"),
    ({"x": torch.zeros(M, 2 * H, dtype=FP8)[:, ::2]}, r"x: expected a contiguous tensor"),
    ({"x": torch.zeros(M * H + 1, dtype=FP8)[1:].view(M, H)}, r"x: expected data at a multiple of 16 bytes"),
    ({"x_scale": None}, r"x_scale: an FP8 x needs float32 scales \[3, 2\]"),
    ({"x_scale": torch.ones(M, 4)}, r"x_scale: expected shape \[3, 2\], got \[3, 4\]"),
    ({"weights": torch.ones(M, T, dtype=torch.bfloat16)}, r"weights: expected torch.float32"),
    ({"ids": torch.zeros(M, T, dtype=torch.int64)}, r"ids: expected torch.int32, got torch.int64"),
    ({"ids": torch.tensor([[0, 4]] * M, dtype=torch.int32)}, r"ids: expected 0 to 3, got 0 to 4"),
    ({"ids": torch.tensor([[0, -1]] * M, dtype=torch.int32)}, r"ids: expected 0 to 3, got -1 to 0"),
    ({"ids": torch.tensor([[2, 2]] * M, dtype=torch.int32)}, r"ids: expected 2 different experts"),
    ({"w13_scale": None}, r"w13_scale, w2_scale: FP8 weights need float32 scales"),
    ({"w13_scale": torch.ones(E, 4, 4)}, r"w13_scale: expected shape \[4, 2, 2\], got \[4, 4, 4\]"),
    (
        {"w13_ENH": torch.zeros(E, 192, H, dtype=FP8)},
        r"w13's rows \(gate and up\): expected a multiple of 256, got 192",
    ),
    ({"w13_ENH": torch.zeros(E, 2 * WIDTH, 200, dtype=FP8)}, r"hidden size: expected a multiple of 128, got 200"),
    ({"w13_ENH": torch.zeros(E, 2 * WIDTH, H)}, r"w13: expected torch.bfloat16 or torch.float8_e4m3fn"),
    ({"w2_EHI": torch.zeros(E, WIDTH, H, dtype=FP8)}, r"w2: expected shape \[4, 256, 128\], got \[4, 128, 256\]"),
    ({"expert_map": torch.zeros(E, dtype=torch.int64)}, r"expert_map: expected torch.int32"),
]


@pytest.mark.parametrize(("changed", "message"), CASES, ids=[str(n) for n in range(len(CASES))])
def test_fused_moe_says_what_came_and_what_is_expected(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(**changed)


def test_no_tokens_launch_nothing() -> None:
    a = good()
    none = {name: a[name][:0] for name in ("x", "weights", "ids", "x_scale")}
    assert fused_moe(none["x"], a["experts"], none["weights"], none["ids"], x_scale=none["x_scale"]).shape == (0, H)


def test_routing_and_quantisation_refuse_as_well() -> None:
    bias = torch.zeros(256)
    with pytest.raises(ValueError, match=r"bias: expected shape \[256\], got \[8\]"):
        route(torch.zeros(1, 256), bias[:8], groups=8, top_groups=4, topk=8, scale=1.0)
    with pytest.raises(ValueError, match="expected powers of two"):
        route(torch.zeros(1, 96), bias[:96], groups=8, top_groups=4, topk=8, scale=1.0)
    with pytest.raises(ValueError, match="4 groups of 32 experts cannot give 200 experts"):
        route(torch.zeros(1, 256), bias, groups=8, top_groups=4, topk=200, scale=1.0)
    with pytest.raises(ValueError, match=r"ids: expected torch.int32, got torch.int64"):
        sort_slots(torch.zeros(3, 2, dtype=torch.int64), 4, 16)
    with pytest.raises(ValueError, match="width: expected a multiple of 128, got 100"):
        quantise(torch.zeros(1, 100))
    with pytest.raises(ValueError, match="gate_up's width: expected a multiple of 256, got 384"):
        swiglu_quantise(torch.zeros(1, 384))
