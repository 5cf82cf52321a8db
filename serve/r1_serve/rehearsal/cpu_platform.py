"""The platform of a CPU rank that Ray places like a GPU rank."""

from __future__ import annotations

from typing import Any

from vllm.platforms.cpu import CpuPlatform
from vllm.v1.attention.backends.registry import AttentionBackendEnum

DENSE_BLOCK_TOKENS = 64  # what vLLM's CPU kernels like is a multiple of 32


class RehearsalPlatform(CpuPlatform):  # type: ignore[misc]
    """vLLM's CPU platform, asking Ray for ``GPU``: nodes started with ``--num-gpus N`` hold N CPU ranks."""

    ray_device_key: str = "GPU"

    # vLLM compiles small helpers (log-probabilities, vocabulary masks) even with enforce_eager. Inductor would need a
    # C++ compiler on the laptop and hold up each worker's first request for ten seconds.
    simple_compile_backend: str = "eager"

    @classmethod
    def check_and_update_config(cls, vllm_config: Any) -> None:
        """vLLM's own adjustments, less three that do not fit a rehearsal."""
        model, attention, cache = vllm_config.model_config, vllm_config.attention_config, vllm_config.cache_config
        if model is not None and model.use_mla and attention.backend is None:
            # Where the CPU has AMX, vLLM would take a backend that computes in bfloat16 only: a float32 checkpoint
            # would not run, and answers would differ from one laptop to the next.
            attention.backend = AttentionBackendEnum.CPU_MLA
        if model is not None and not model.use_mla and not cache.user_specified_block_size:
            # vLLM would take 128, of which no block of the router's index is made: a rank could not tell what it has.
            cache.block_size, cache.user_specified_block_size = DENSE_BLOCK_TOKENS, True

        executor = vllm_config.parallel_config.distributed_executor_backend
        super().check_and_update_config(vllm_config)
        if executor == "uni":
            # vLLM moves a lone worker out of the engine's process because it binds threads through the environment of
            # a new one. Nothing is bound here (see settings.py), and a process less is a gigabyte and five seconds.
            vllm_config.parallel_config.distributed_executor_backend = executor
