"""GPUs as a planner needs them. Rates are dense (no sparsity) peaks of the SXM/OAM part, per GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

MIB = 1 << 20
TERA = 1e12


@dataclass(frozen=True)
class Gpu:
    """One accelerator.

    ``memory_bytes`` is what the driver reports as total. ``bandwidth`` is HBM bytes/s, ``flops`` FLOP/s by dtype.
    ``nvlink`` is bytes/s one way between GPUs of a scale-up domain of ``domain`` GPUs; ``network`` bytes/s one way of
    the InfiniBand or RoCE port each GPU usually has.
    """

    name: str
    memory_bytes: int
    bandwidth: float
    flops: Mapping[str, float] = field(hash=False)
    nvlink: float
    domain: int
    network: float
    aliases: tuple[str, ...] = ()

    def usable_bytes(self, utilization: float = 0.9) -> int:
        """Memory an engine may claim; 0.9 is vLLM's default gpu_memory_utilization."""
        return int(self.memory_bytes * utilization)

    def rate(self, dtype: str) -> float:
        """FLOP/s for ``dtype``; a GPU without FP8 units runs FP8 weights at its BF16 rate."""
        name = "fp8" if dtype == "fp8_block" else dtype
        return self.flops[name if name in self.flops else "bfloat16"]


def _flops(**tera: float) -> Mapping[str, float]:
    return MappingProxyType({dtype: rate * TERA for dtype, rate in tera.items()})


GPUS: dict[str, Gpu] = {
    each.name: each
    for each in (
        Gpu(
            # NVIDIA A100 80GB SXM datasheet: 2,039 GB/s, BF16 312 TFLOPS, NVLink 600 GB/s both ways; nvidia-smi total.
            # No FP8. DGX A100: one 200 Gb/s HDR port a GPU.
            "A100",
            memory_bytes=81920 * MIB,
            bandwidth=2.039e12,
            flops=_flops(bfloat16=312),
            nvlink=300e9,
            domain=8,
            network=25e9,
            aliases=("a100_sxm", "a100-80gb"),
        ),
        Gpu(
            # NVIDIA H20 datasheet: 96 GB, 4.0 TB/s, BF16 148, FP8 296 TFLOPS, NVLink 900 GB/s both ways.
            "H20",
            memory_bytes=97871 * MIB,
            bandwidth=4.0e12,
            flops=_flops(bfloat16=148, fp8=296),
            nvlink=450e9,
            domain=8,
            network=50e9,
            aliases=("h20_sxm",),
        ),
        Gpu(
            # H100 with NVLink cut to 400 GB/s both ways (arXiv 2412.19437 §3.1.2: 160 GB/s measured one way).
            "H800",
            memory_bytes=81559 * MIB,
            bandwidth=3.35e12,
            flops=_flops(bfloat16=989.4, fp8=1978.9),
            nvlink=200e9,
            domain=8,
            network=50e9,
            aliases=("h800_sxm",),
        ),
        Gpu(
            # NVIDIA H100 SXM5 datasheet: 80 GB, 3.35 TB/s, BF16 1,979 and FP8 3,958 TFLOPS with sparsity, halved here;
            # NVLink 900 GB/s both ways; DGX H100: one 400 Gb/s NDR port a GPU.
            "H100",
            memory_bytes=81559 * MIB,
            bandwidth=3.35e12,
            flops=_flops(bfloat16=989.4, fp8=1978.9),
            nvlink=450e9,
            domain=8,
            network=50e9,
            aliases=("h100_sxm", "h100-80gb"),
        ),
        Gpu(
            # NVIDIA H200 SXM datasheet: 141 GB, 4.8 TB/s, rates and links of the H100.
            "H200",
            memory_bytes=143771 * MIB,
            bandwidth=4.8e12,
            flops=_flops(bfloat16=989.4, fp8=1978.9),
            nvlink=450e9,
            domain=8,
            network=50e9,
            aliases=("h200_sxm",),
        ),
        Gpu(
            # NVIDIA HGX B200 datasheet, an eighth of the board: 180 GB, 8 TB/s, FP8 36 and FP4 72 PFLOPS dense/8;
            # NVLink 1.8 TB/s both ways.
            "B200",
            memory_bytes=183359 * MIB,
            bandwidth=8.0e12,
            flops=_flops(bfloat16=2250, fp8=4500, fp4=9000),
            nvlink=900e9,
            domain=8,
            network=50e9,
            aliases=("b200_sxm",),
        ),
        Gpu(
            # NVIDIA GB200 NVL72 datasheet, a 72nd of the rack: 186 GB, 8 TB/s, BF16 180, FP8 360, FP4 720 PFLOPS dense.
            "GB200",
            memory_bytes=189471 * MIB,
            bandwidth=8.0e12,
            flops=_flops(bfloat16=2500, fp8=5000, fp4=10000),
            nvlink=900e9,
            domain=72,
            network=50e9,
            aliases=("gb200_nvl72",),
        ),
        Gpu(
            # AMD Instinct MI300X datasheet: 192 GB, 5.3 TB/s, BF16 1,307.4 and FP8 2,614.9 TFLOPS dense; seven
            # Infinity Fabric links of 128 GB/s both ways.
            "MI300X",
            memory_bytes=196592 * MIB,
            bandwidth=5.3e12,
            flops=_flops(bfloat16=1307.4, fp8=2614.9),
            nvlink=448e9,
            domain=8,
            network=50e9,
            aliases=("mi300x_oam",),
        ),
    )
}


def gpu(name: str) -> Gpu:
    """Find a GPU by name or alias, whatever the case. Raises ValueError that lists what there is."""
    wanted = name.lower()
    for each in GPUS.values():
        if wanted in (each.name.lower(), *each.aliases):
            return each
    raise ValueError(f"unknown GPU {name!r}: choose one of {', '.join(GPUS)}")
