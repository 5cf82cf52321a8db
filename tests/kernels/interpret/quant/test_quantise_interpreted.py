"""quant/: bit for bit the reference, with float32 and with power-of-two scales."""

from __future__ import annotations

import pytest
import torch
from r1_kernels.quant import op, reference


@pytest.mark.parametrize("ue8m0", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 3, 33])
def test_rows_are_quantised_bit_for_bit_as_the_reference(rows: int, ue8m0: bool) -> None:
    x = (torch.randn(rows, 384, generator=torch.Generator().manual_seed(rows)) * 3).bfloat16()
    x[:1, :128] = 0  # a group of zeros
    x[:1, 128] = 3e4  # an outlier
    q, scale = op.quantise(x, ue8m0=ue8m0)
    expected, expected_scale = reference.quantise(x, ue8m0)
    assert torch.equal(scale, expected_scale)
    assert torch.equal(q.view(torch.uint8), expected.view(torch.uint8))


def test_many_rows_take_the_wide_program_and_agree_as_well() -> None:
    x = torch.randn(1030, 1024, generator=torch.Generator().manual_seed(1)).bfloat16()
    q, scale = op.quantise(x)
    expected, expected_scale = reference.quantise(x)
    assert torch.equal(scale, expected_scale)
    assert torch.equal(q.view(torch.uint8), expected.view(torch.uint8))


def test_a_power_of_two_scale_is_the_least_that_does_not_saturate() -> None:
    x = torch.randn(16, 128, generator=torch.Generator().manual_seed(2)).bfloat16()
    x[0] = 448.0  # exactly 1: must not be rounded up
    _, scale = op.quantise(x, ue8m0=True)
    mantissa, _ = torch.frexp(scale)
    assert (mantissa == 0.5).all()
    assert scale[0, 0] == 1.0
    largest = x.float().abs().amax(-1, keepdim=True)
    assert (largest <= 448 * scale).all()
    assert (largest > 448 * scale / 2).all()


@pytest.mark.parametrize("ue8m0", [False, True])
def test_swiglu_and_quantisation_in_one_launch_are_the_two_after_each_other(ue8m0: bool) -> None:
    x = torch.randn(33, 512, generator=torch.Generator().manual_seed(3)).bfloat16()
    q, scale = op.swiglu_quantise(x, ue8m0=ue8m0)
    expected, expected_scale = reference.quantise(reference.swiglu(x), ue8m0)
    # The sigmoid differs in its last bit, which shows in a scale, and moves a value over an FP8 boundary now and then.
    torch.testing.assert_close(scale, expected_scale, rtol=1e-6, atol=0)
    torch.testing.assert_close(q.float(), expected.float(), rtol=0.126, atol=0)
    assert (q.float() != expected.float()).float().mean() < 1e-3
