"""The fitted constants, read once from ``constants.json``, which says where each came from. Times are in seconds."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

KvDtype = Literal["fp8", "bfloat16", "float32"]
FILE = Path(__file__).parent / "constants.json"
MEASURED = ("H100", "H200")  # GPUs whose kernels and runs the constants are fitted on
FRAMEWORKS = ("trtllm", "sglang", "vllm")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Gemm(_Frozen):
    """A dense matrix product: shares of peak FLOPs and bandwidth reached, and the kernel's fixed time."""

    compute: float = Field(gt=0, le=1)
    bandwidth: float = Field(gt=0, le=1)
    fixed: float = Field(ge=0)


class Attention(_Frozen):
    """The attention core. Decode: share of bandwidth reached. Prefill: share of BF16 peak, and the HBM passes over the
    hidden states of norms, rotary, quantisation and copies."""

    decode_bandwidth: float = Field(gt=0, le=1)
    prefill_compute: float = Field(gt=0, le=1)
    prefill_passes: float = Field(ge=0)
    fixed: float = Field(ge=0)


class ExpertKernel(_Frozen):
    """Routed experts. ``tile`` is the rows an expert's tokens are padded to; ``shard`` s: tensor parallelism over t
    ranks narrows an expert and multiplies ``compute`` by t^-s."""

    compute: float = Field(gt=0, le=1)
    bandwidth: float = Field(gt=0, le=1)
    fixed: float = Field(ge=0)
    tile: float = Field(ge=1)
    shard: float = Field(ge=0)


class Routing(_Frozen):
    """Expert i is chosen in proportion to i^-``skew``; the hottest of e ranks gets e^``hot`` times its share."""

    skew: float = Field(ge=0)
    hot: float = Field(ge=0)


class Collectives(_Frozen):
    """Fixed seconds and share of link bandwidth: all-reduce, all-to-all in a domain (prefill and decode), network."""

    reduce_fixed: float = Field(ge=0)
    reduce_bandwidth: float = Field(gt=0, le=1.1)
    exchange_fixed: float = Field(ge=0)
    exchange_bandwidth: float = Field(gt=0, le=1)
    latency_bandwidth: float = Field(gt=0, le=1)
    network_fixed: float = Field(ge=0)
    network_bandwidth: float = Field(gt=0, le=1)


class Framework(_Frozen):
    """What an engine adds to its kernels. Seconds where nothing else is said.

    A step: ``layer`` for launches, norms and quantisation a layer; ``step`` for scheduler and sampler, ``sequence``
    more for each running sequence; ``eager`` more with prefill in it, which no CUDA graph covers; ``data_parallel``
    a MoE layer where attention is data parallel (padding, meeting). ``experts``, ``prefill``: factors on the
    operators. ``mixed``: decode tokens share the steps of a prefill.

    Kernels: ``decode_compute``, ``decode_heads``: the decode attention's share of BF16 peak, and the heads it pads a
    rank's to. ``kernel`` and, where experts span NVLink domains, ``wide_kernel`` for experts; there ``overlap`` is the
    share of the shorter of computation and exchange that hides behind the other.

    A first token: ``ttft`` always; ``handover`` more from a separate pool; ``balance`` steps more, on average, until
    other data-parallel ranks have a prompt too; ``wide_prefill`` more where data-parallel prefill spans domains (seen
    on one deployment, cause unknown). ``chunk``: prompt tokens of a step.
    """

    layer: float = Field(ge=0)
    step: float = Field(ge=0)
    sequence: float = Field(ge=0)
    eager: float = Field(ge=0)
    experts: float = Field(gt=0)
    prefill: float = Field(gt=0)
    mixed: bool
    ttft: float = Field(ge=0)
    handover: float = Field(ge=0)
    balance: float = Field(ge=0)
    wide_prefill: float = Field(ge=0)
    data_parallel: float = Field(ge=0)
    decode_compute: float = Field(gt=0, le=1)
    decode_heads: int = Field(ge=1)
    kv_dtype: KvDtype
    kernel: Literal["triton", "cutlass", "deepgemm"]
    wide_kernel: Literal["triton", "cutlass", "deepgemm"]
    overlap: float = Field(ge=0, le=1)
    chunk: int = Field(ge=1)


class Serving(_Frozen):
    """``burst``: share of a closed-loop benchmark's requests that arrive as one wave, with unified engines and with
    separate pools (ten requests a client make the first wave 0.1 of them)."""

    burst_unified: float = Field(ge=0, le=1)
    burst_separate: float = Field(ge=0, le=1)
    align: float = Field(ge=0, le=1, description="of d data-parallel ranks d^align prefill in the same step")
    acceptance: float = Field(ge=0, le=1, description="of a drafted token, where a run only says it speculated")


class Constants(_Frozen):
    provenance: dict[str, str]
    gemm: dict[str, Gemm]
    attention: Attention
    kernels: dict[str, ExpertKernel]
    routing: Routing
    collectives: Collectives
    frameworks: dict[str, Framework]
    serving: Serving

    def framework(self, name: str) -> Framework:
        """Raises ValueError that lists what there is."""
        if name not in self.frameworks:
            raise ValueError(f"unknown backend {name!r}: choose one of {', '.join(self.frameworks)}")
        return self.frameworks[name]


def unmeasured(gpu: str) -> str | None:
    """What to tell of a GPU that no measurement here is of, None for the others."""
    if gpu in MEASURED:
        return None
    return (
        f"extrapolated: nothing was measured on {gpu}. Its datasheet's memory, bandwidth, FLOPs and links are combined "
        f"with the efficiencies of kernels on {' and '.join(MEASURED)} (docs/performance-model.md)"
    )


@cache
def fitted() -> Constants:
    """The constants shipped with the package."""
    return Constants.model_validate(json.loads(FILE.read_text(encoding="utf-8")))
