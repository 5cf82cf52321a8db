"""What a CPU rank is given beside its Plan: environment variables and engine arguments, as plain values."""

from __future__ import annotations


def environment(*, threads: int) -> dict[str, str]:
    """Environment of every process of a rank; must be set before the process starts, so through a runtime env.

    ``threads`` is the OpenMP threads of one tensor-parallel worker. torch reads it once, when it is imported, and
    Ray sets it to 1 in an actor that does not say otherwise.

    Not among them: ``VLLM_CPU_KVCACHE_SPACE``, which takes whole GiB only (see :func:`engine_arguments`).
    """
    if threads < 1:
        raise ValueError(f"threads is {threads}: a worker needs at least one")
    return {
        # vLLM would pin each worker to a NUMA node of its own and refuse to start where there are fewer nodes
        # than workers, which is any laptop.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(threads),
        # Idle OpenMP threads of one rank spin on the cores another rank needs.
        "OMP_WAIT_POLICY": "passive",
        # A rehearsal serves local checkpoints: no look-up may delay or fail a start.
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
    }


def engine_arguments(*, kv_cache_gib: float) -> dict[str, object]:
    """Arguments of ``AsyncEngineArgs`` that differ on a CPU rank.

    ``kv_cache_memory_bytes`` also switches two checks off that cannot hold when several ranks share a machine:
    vLLM reads ``gpu_memory_utilization`` as a share of the *host's* memory, refuses to start when that share is not
    free, and sizes the KV cache as the share less what the process already uses.
    """
    if kv_cache_gib <= 0:
        raise ValueError(f"kv_cache_gib is {kv_cache_gib}: the cache needs memory")
    return {
        "kv_cache_memory_bytes": int(kv_cache_gib * 2**30),
        # Compiling costs minutes a rank and buys little at this size; eager also skips the warm-up.
        "enforce_eager": True,
    }
