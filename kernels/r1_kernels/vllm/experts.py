"""vLLM's view of fused_moe: an experts class for its modular MoE kernel (vLLM 0.32)."""

from __future__ import annotations

import logging
from typing import Any

import torch
import vllm.model_executor.layers.fused_moe.modular_kernel as mk
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.experts.triton_moe import TritonExperts
from vllm.model_executor.layers.fused_moe.topk_weight_and_reduce import TopKWeightAndReduceNoOP
from vllm.model_executor.layers.quantization.utils.fp8_utils import is_deep_gemm_e8m0_used
from vllm.model_executor.layers.quantization.utils.quant_utils import kFp8Dynamic128Sym, kFp8Static128BlockSym
from vllm.platforms import current_platform

from r1_kernels.counters import counters
from r1_kernels.fused_moe.op import Experts, fused_moe
from r1_kernels.vllm.settings import Mode

logger = logging.getLogger(__name__)

VERIFY_BOUND = 2e-2
"""RMS of the difference over the RMS of vLLM's output. vLLM rounds to BF16 before SwiGLU and we do not."""


class R1Experts(mk.FusedMoEExpertsModular):  # type: ignore[misc]
    """Block-FP8 or BF16 experts, SwiGLU, the weighted sum over a token's experts done in the kernel."""

    def __init__(self, moe_config: Any, quant_config: Any) -> None:
        super().__init__(moe_config, quant_config)
        counters(torch.empty(0, device=moe_config.device).device)  # now: not while vLLM captures its graphs

    @staticmethod
    def activation_format() -> mk.FusedMoEActivationFormat:
        return mk.FusedMoEActivationFormat.Standard

    @staticmethod
    def is_supported_config(
        cls: type[mk.FusedMoEExperts], moe_config: Any, weight_key: Any, activation_key: Any, activation_format: Any
    ) -> tuple[bool, str | None]:
        """vLLM's own questions, and what they do not ask: biases, a clamp, the output's type, whole blocks."""
        ok, reason = mk.FusedMoEExperts.is_supported_config(
            cls, moe_config, weight_key, activation_key, activation_format
        )
        if not ok:
            return ok, reason
        block = 128 if weight_key is not None else 16
        width, hidden = moe_config.intermediate_size_per_partition, moe_config.hidden_dim
        if moe_config.has_bias or moe_config.swiglu_limit is not None:
            return False, "expert biases and a SwiGLU clamp are not supported"
        if get_current_vllm_config().parallel_config.use_ubatching:
            return False, "two microbatches would overlap on two streams, and the kernels share arrival counters"
        if moe_config.in_dtype != torch.bfloat16:
            return False, f"the model runs in {moe_config.in_dtype}, and only bfloat16 is supported"
        if width % block or hidden % block:
            return False, f"expert width {width} and hidden size {hidden} are not multiples of {block}"
        return True, None

    @staticmethod
    def _supports_current_device() -> bool:
        return bool(current_platform.is_cuda() and current_platform.has_device_capability(90))

    @staticmethod
    def _supports_no_act_and_mul() -> bool:
        return False

    @staticmethod
    def _supports_quant_scheme(weight_key: Any, activation_key: Any) -> bool:
        return bool((weight_key, activation_key) in ((None, None), (kFp8Static128BlockSym, kFp8Dynamic128Sym)))

    @staticmethod
    def _supports_activation(activation: MoEActivation) -> bool:
        return bool(activation == MoEActivation.SILU)

    @staticmethod
    def _supports_parallel_config(parallel: Any) -> bool:
        return not bool(parallel.use_fi_nvl_two_sided_kernels or parallel.use_fi_nvl_one_sided_kernels)

    def finalize_weight_and_reduce_impl(self) -> mk.TopKWeightAndReduce:
        return TopKWeightAndReduceNoOP()

    def workspace_shapes(
        self, M: int, N: int, K: int, topk: int, global_num_experts: int, local_num_experts: int, meta: Any, act: Any
    ) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """None of vLLM's workspaces: the operator's buffers have types of their own. The output is [M, K]."""
        return (0,), (0,), (M, K)

    def apply(
        self,
        output: torch.Tensor,
        hidden_states: torch.Tensor,
        w1: torch.Tensor,
        w2: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        activation: MoEActivation,
        global_num_experts: int,
        expert_map: torch.Tensor | None,
        a1q_scale: torch.Tensor | None,
        a2_scale: torch.Tensor | None,
        workspace13: torch.Tensor,
        workspace2: torch.Tensor,
        expert_tokens_meta: Any,
        apply_router_weight_on_input: bool,
    ) -> None:
        """Fill `output` with the sum over each token's local experts. Raises: ValueError for what is not supported."""
        if apply_router_weight_on_input:
            raise ValueError("apply_router_weight_on_input: expected False, the router's weight is applied to outputs")
        fp8 = self.quant_config.quant_dtype is not None
        experts = Experts(w1, w2, self.w1_scale if fp8 else None, self.w2_scale if fp8 else None, expert_map)
        self.compute(
            hidden_states,
            a1q_scale.contiguous() if a1q_scale is not None else None,
            experts,
            topk_weights.float().contiguous(),
            topk_ids.to(torch.int32).contiguous(),
            output,
        )

    def compute(
        self,
        x: torch.Tensor,
        x_scale: torch.Tensor | None,
        experts: Experts,
        weights: torch.Tensor,
        ids: torch.Tensor,
        output: torch.Tensor,
    ) -> None:
        """The operator; scales between the GEMMs as vLLM rounds those before the first."""
        ue8m0 = experts.fp8 and is_deep_gemm_e8m0_used()
        fused_moe(x, experts, weights, ids, x_scale=x_scale, out=output, ue8m0=ue8m0, check_ids=False)


class VerifyingExperts(R1Experts):
    """R1Experts, compared with vLLM's Triton experts at every call outside a graph capture."""

    def apply(self, output: torch.Tensor, hidden_states: torch.Tensor, *args: Any, **more: Any) -> None:
        """As R1Experts; where both differ beyond VERIFY_BOUND, says so and leaves vLLM's answer in `output`."""
        super().apply(output, hidden_states, *args, **more)
        if output.is_cuda and torch.cuda.is_current_stream_capturing():
            return
        expected = self.expected(output, hidden_states, *args, **more)
        off = (output.float() - expected.float()).square().mean().sqrt()
        error = float(off / expected.float().square().mean().sqrt().clamp(min=1e-30))
        if error <= VERIFY_BOUND:  # not so for NaN either
            logger.info("R1_KERNELS=verify: %d tokens, RMS error %.2e", output.shape[0], error)
            return
        logger.error("R1_KERNELS=verify: %d tokens differ from vLLM's by %.2e RMS", output.shape[0], error)
        output.copy_(expected)

    def expected(
        self,
        output: torch.Tensor,
        hidden_states: torch.Tensor,
        w1: torch.Tensor,
        w2: torch.Tensor,
        *args: Any,
        **more: Any,
    ) -> torch.Tensor:
        """What vLLM's Triton experts give, on workspaces of their own."""
        names = (
            "topk_weights", "topk_ids", "activation", "global_num_experts", "expert_map", "a1q_scale", "a2_scale",
            "workspace13", "workspace2", "expert_tokens_meta", "apply_router_weight_on_input",
        )  # fmt: skip
        given = dict(zip(names, args, strict=False)) | more
        theirs = TritonExperts(self.moe_config, self.quant_config)
        tokens, hidden = output.shape
        shapes = theirs.workspace_shapes(
            tokens, w1.shape[1], hidden, given["topk_ids"].shape[1], given["global_num_experts"], w1.shape[0],
            None, given["activation"],
        )  # fmt: skip
        given |= {"workspace13": output.new_empty(shapes[0]), "workspace2": output.new_empty(shapes[1])}
        result = torch.empty_like(output)
        theirs.apply(result, hidden_states, w1, w2, **given)
        return result


def experts_class(mode: Mode) -> type[R1Experts]:
    """The class a mode installs."""
    return VerifyingExperts if mode == "verify" else R1Experts
