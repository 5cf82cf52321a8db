"""Where vLLM asks for experts: the quantisation method `fp8`, and the unquantised MoE method for BF16.

Both are vLLM 0.32's own extension points: `register_quantization_config`, and `CustomOp.register_oot`. vLLM makes its
choice first; ours replaces it where `is_supported_config` agrees, and which was chosen, and why, is logged once.
"""

from __future__ import annotations

import logging
from typing import Any

import vllm.model_executor.layers.fused_moe.modular_kernel as mk
from vllm.model_executor.custom_op import CustomOp, op_registry_oot
from vllm.model_executor.layers.fused_moe.oracle.fp8 import Fp8MoeBackend
from vllm.model_executor.layers.fused_moe.oracle.unquantized import UnquantizedMoeBackend
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.fp8 import Fp8Config, Fp8MoEMethod
from vllm.model_executor.layers.quantization.utils.quant_utils import kFp8Dynamic128Sym, kFp8Static128BlockSym

logger = logging.getLogger(__name__)
_said: set[str] = set()


def prefer(experts: type[mk.FusedMoEExpertsModular], method: Any, kind: str, keys: tuple[Any, Any]) -> bool:
    """Whether `experts` take the layer of `method`; says which was chosen and why, once for each answer."""
    theirs = method.experts_cls.__name__ if method.experts_cls is not None else "none"
    batched = method.moe.moe_parallel_config.use_batched_activation_format
    wanted = mk.FusedMoEActivationFormat.BatchedExperts if batched else mk.FusedMoEActivationFormat.Standard
    ok, reason = experts.is_supported_config(experts, method.moe, *keys, wanted)
    chosen = experts.__name__ if ok else theirs
    why = f"instead of vLLM's {theirs}" if ok else f"vLLM's choice is kept, since {reason}"
    text = f"R1_KERNELS: {kind} experts by {chosen}: {why}"
    if text not in _said:
        _said.add(text)
        logger.info("%s", text)
    return bool(ok)


def install(experts: type[mk.FusedMoEExpertsModular]) -> None:
    """Make `experts` the first choice of every MoE layer that vLLM builds from now on in this process."""

    class R1Fp8MoEMethod(Fp8MoEMethod):  # type: ignore[misc]
        """vLLM's block-FP8 method, with these experts; TRITON is the backend whose weights stay as loaded."""

        def __init__(self, quant_config: Fp8Config, layer: Any) -> None:
            super().__init__(quant_config, layer)
            whole = self.block_quant and list(self.moe_block_shape) == [128, 128]
            keys = (kFp8Static128BlockSym, kFp8Dynamic128Sym) if whole else ("other blocks", None)
            if prefer(experts, self, "FP8", keys):
                self.fp8_backend, self.experts_cls = Fp8MoeBackend.TRITON, experts

    class R1Fp8Config(Fp8Config):  # type: ignore[misc]
        """vLLM's FP8 configuration, whose MoE layers get R1Fp8MoEMethod."""

        def get_quant_method(self, layer: Any, prefix: str) -> Any:
            method = super().get_quant_method(layer, prefix)
            return R1Fp8MoEMethod(self, layer) if type(method) is Fp8MoEMethod else method

    register_quantization_config("fp8")(R1Fp8Config)

    class R1UnquantizedMoEMethod(UnquantizedFusedMoEMethod):  # type: ignore[misc]
        """vLLM's BF16 method, with these experts."""

        def __init__(self, moe: Any) -> None:
            super().__init__(moe)
            if prefer(experts, self, "BF16", (None, None)):
                self.unquantized_backend, self.experts_cls = UnquantizedMoeBackend.TRITON, experts

    # vLLM asserts that a name is registered once, and plug-ins may be loaded twice in a process.
    op_registry_oot.pop("UnquantizedFusedMoEMethod", None)
    CustomOp.register_oot(R1UnquantizedMoEMethod, name="UnquantizedFusedMoEMethod")
