"""vLLM's own MoE methods with the plug-in installed, the torch reference standing in for the kernels on a CPU.

What is real: the registered `fp8` configuration, its choice of a method for a layer, the method's weights, its modular
kernel, and the call of our experts class through it.
"""

from __future__ import annotations

import json
import tempfile
from typing import Any, ClassVar

import torch
from r1_kernels.cases import Case, make
from r1_kernels.fused_moe.op import Experts
from r1_kernels.fused_moe.reference import fused_moe as reference
from r1_kernels.quant.reference import quantise
from r1_kernels.vllm.experts import R1Experts, VerifyingExperts
from r1_kernels.vllm.install import install
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.config import (
    FUSED_MOE_UNQUANTIZED_CONFIG,
    FusedMoEConfig,
    FusedMoEParallelConfig,
    RoutingMethodType,
)
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
from vllm.model_executor.layers.quantization import get_quantization_config
from vllm.model_executor.layers.quantization.utils.quant_utils import kFp8Dynamic128Sym, kFp8Static128BlockSym


class OnTorch(R1Experts):
    """R1Experts with the reference for its operator."""

    maps: ClassVar[list[bool]] = []

    @staticmethod
    def _supports_current_device() -> bool:
        return True

    @property
    def expects_unquantized_inputs(self) -> bool:
        return True  # vLLM's CPU build has no kernel that quantises activations

    def compute(self, x: Any, x_scale: Any, experts: Experts, weights: Any, ids: Any, output: Any) -> None:
        self.maps.append(experts.expert_map is not None)
        if experts.fp8:
            x, x_scale = quantise(x)
        e = experts
        output.copy_(
            reference(x, e.w13_ENH, e.w2_EHI, weights, ids, x_scale=x_scale, w13_scale=e.w13_scale,
                      w2_scale=e.w2_scale, expert_map=e.expert_map)
        )  # fmt: skip


class Verified(VerifyingExperts):
    """VerifyingExperts between two known answers: vLLM's is all ones."""

    answer = 1.0

    def compute(self, x: Any, x_scale: Any, experts: Experts, weights: Any, ids: Any, output: Any) -> None:
        output.fill_(self.answer)

    def expected(self, output: torch.Tensor, *args: Any, **more: Any) -> torch.Tensor:
        return torch.ones_like(output)


def verified(answer: float) -> float:
    """What is served where our kernels give `answer` everywhere and vLLM's 1."""
    case = make(4, fp8=False)
    experts = Verified.__new__(Verified)
    experts.quant_config, experts.answer = FUSED_MOE_UNQUANTIZED_CONFIG, answer
    output, none = torch.empty(4, 256, dtype=torch.bfloat16), torch.empty(0)
    experts.apply(
        output, case.x, case.experts.w13_ENH, case.experts.w2_EHI, case.weights, case.ids, MoEActivation.SILU, 16,
        None, None, None, none, none, None, False,
    )  # fmt: skip
    return float(output.float().mean())


def layer_of(case: Case, hidden: int = 256, width: int = 128, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A layer as vLLM's models make it, without the parts that need a process group."""
    local = case.experts.w13_ENH.shape[0]
    layer = RoutedExperts.__new__(RoutedExperts)
    torch.nn.Module.__init__(layer)
    layer.moe_config = FusedMoEConfig(
        num_experts=16, experts_per_token=4, hidden_dim=hidden, intermediate_size=width, num_local_experts=local,
        num_logical_experts=16, activation=MoEActivation.SILU, device="cpu",
        routing_method=RoutingMethodType.DeepSeekV3,
        moe_parallel_config=FusedMoEParallelConfig.make_no_parallel(), in_dtype=dtype,
    )  # fmt: skip
    layer._expert_routing_tables = lambda: None
    return layer


def run(method: Any, layer: Any, case: Case, x: torch.Tensor) -> torch.Tensor:
    """Load the case's weights into the method's parameters, and call the kernel vLLM built."""
    e = case.experts
    method.create_weights(layer, e.w13_ENH.shape[0], 256, 128, torch.bfloat16, weight_loader=None)
    layer.w13_weight.data.copy_(e.w13_ENH)
    layer.w2_weight.data.copy_(e.w2_EHI)
    if e.fp8:
        layer.w13_weight_scale_inv.data.copy_(e.w13_scale)
        layer.w2_weight_scale_inv.data.copy_(e.w2_scale)
    method.process_weights_after_loading(layer)
    return method.moe_kernel.apply(
        x, layer.w13_weight, layer.w2_weight, case.weights, case.ids, activation=MoEActivation.SILU,
        global_num_experts=16, expert_map=e.expert_map, apply_router_weight_on_input=False,
        shared_experts=None, shared_experts_input=None,
    )  # fmt: skip


def error(got: torch.Tensor, case: Case) -> float:
    right = case.expected().double()
    return float((got.double() - right).square().mean().sqrt() / right.square().mean().sqrt())


facts: dict[str, Any] = {}
with set_current_vllm_config(VllmConfig()), tempfile.NamedTemporaryFile() as meeting:
    init_distributed_environment(1, 0, f"file://{meeting.name}", 0, "gloo")
    initialize_model_parallel(1, 1)
    install(OnTorch)
    install(OnTorch)  # vLLM may load a plug-in twice
    config = get_quantization_config("fp8").from_config(
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    )
    fp8 = make(9, fp8=True)
    x = make(9, fp8=False).x
    for name, case in {"whole": fp8, "rank": fp8.on_rank(1, 4)}.items():
        layer = layer_of(case)
        method = config.get_quant_method(layer, "model.layers.3.mlp.experts")
        facts[f"fp8_{name}_class"] = method.experts_cls.__name__
        facts[f"fp8_{name}_error"] = error(run(method, layer, case, x), case)
    bf16 = make(9, fp8=False)
    layer = layer_of(bf16)
    method = UnquantizedFusedMoEMethod(layer.moe_config)
    facts["bf16_class"] = method.experts_cls.__name__
    facts["maps"] = list(OnTorch.maps)
    odd = layer_of(fp8, hidden=256, width=192)
    ok, reason = OnTorch.is_supported_config(
        OnTorch, odd.moe_config, kFp8Static128BlockSym, kFp8Dynamic128Sym, OnTorch.activation_format()
    )
    facts["odd_width"] = [ok, reason]
    wrong_type = layer_of(bf16, dtype=torch.float32)
    facts["float32_class"] = UnquantizedFusedMoEMethod(wrong_type.moe_config).experts_cls.__name__
facts["verified"] = {str(answer): verified(answer) for answer in (1.0078125, 2.0, float("nan"))}
print(json.dumps(facts))
