"""What a CPU rank is given beside its Plan: environment variables and engine arguments, as plain values."""

from __future__ import annotations


def environment(*, threads: int) -> dict[str, str]:
    """Environment of every process of a rank, to be set before the process starts: a Ray runtime env does.

    ``threads`` is how many OpenMP threads one worker computes with. Leave a core for the router: a team waits for its
    slowest thread, and where another process has taken that one's core each wait is a time slice (17 ms steps became
    630 ms with two threads on two busy cores; one thread alone took 22 ms). torch reads it when it is first imported,
    and Ray makes it 1 for an actor that does not say.

    ``VLLM_CPU_KVCACHE_SPACE`` is not among them: it takes whole GiB only. See :func:`engine_arguments`.
    """
    if threads < 1:
        raise ValueError(f"threads is {threads}: a worker needs at least one")
    return {
        # vLLM would pin each worker to a NUMA node of its own and refuse to start where there are fewer nodes than
        # workers, which is any laptop.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(threads),
        # Checkpoints are local: no look-up may delay or fail a start.
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }


def engine_arguments(*, kv_cache_gib: float) -> dict[str, int | bool]:
    """Arguments of ``AsyncEngineArgs`` that differ on a CPU rank.

    With ``kv_cache_memory_bytes`` given, vLLM ignores ``gpu_memory_utilization``. On CPU it would read that as a share
    of the host's memory: too high and it refuses to start while other processes hold the memory, too low and nothing
    is left for the cache after the gigabyte each process takes.
    """
    if kv_cache_gib <= 0:
        raise ValueError(f"kv_cache_gib is {kv_cache_gib}: the cache needs memory")
    return {
        "kv_cache_memory_bytes": int(kv_cache_gib * 2**30),
        # Compiling costs minutes a rank. Eager, with the cache's size given, also needs no warm-up.
        "enforce_eager": True,
    }
