"""The platform of a CPU rank that Ray places like a GPU rank."""

from __future__ import annotations

from typing import Any

from vllm.platforms.cpu import CpuPlatform
from vllm.v1.attention.backends.registry import AttentionBackendEnum


class RehearsalPlatform(CpuPlatform):  # type: ignore[misc]
    """vLLM's CPU platform, asking Ray for ``GPU``: nodes started with ``--num-gpus N`` hold N CPU ranks."""

    ray_device_key: str = "GPU"

    @classmethod
    def check_and_update_config(cls, vllm_config: Any) -> None:
        model, attention = vllm_config.model_config, vllm_config.attention_config
        if model is not None and getattr(model, "use_mla", False) and attention.backend is None:
            # On CPUs with AMX vLLM would take a backend that computes in bfloat16 only: a float32 model would not
            # run, and answers would differ from one laptop to the next.
            attention.backend = AttentionBackendEnum.CPU_MLA
        super().check_and_update_config(vllm_config)
