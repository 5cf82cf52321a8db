"""What can be served and on what: the R1 family's architectures and the GPUs, as numbers with their sources."""

from r1_cluster.catalog.hardware import GPUS, Gpu, gpu
from r1_cluster.catalog.models import MODELS, model
from r1_cluster.catalog.shapes import Architecture, Experts, GroupedAttention, LatentAttention

__all__ = [
    "GPUS",
    "MODELS",
    "Architecture",
    "Experts",
    "Gpu",
    "GroupedAttention",
    "LatentAttention",
    "gpu",
    "model",
]
