"""A rank's vLLM engine: the Plan's numbers as engine arguments, and AsyncLLM with token ids in and out."""

from __future__ import annotations

from typing import Any

from r1_cluster.plan import Plan, Pool

from r1_serve.checkpoint import checkpoint_path
from r1_serve.rehearsal.settings import engine_arguments as rehearsal_arguments
from r1_serve.settings import WorkerSettings
from r1_serve.workers.gang import Gang
from r1_serve.workers.outputs import StepHook, token_engine


def engine_arguments(plan: Plan, pool: Pool, gang: Gang, settings: WorkerSettings | None = None) -> dict[str, Any]:
    """Keyword arguments of ``AsyncEngineArgs`` for one rank.

    A rank of one accelerator computes in its engine's own process; more go through vLLM's Ray executor, on CPU exactly
    as on GPUs. ``settings`` says where weights are streamed
    from, if they are, and where vLLM sends its own spans.
    """
    layout, engine = pool.layout, plan.engine
    streamed = settings.weights if settings else None
    arguments: dict[str, Any] = {
        "model": streamed or str(checkpoint_path(plan.model.checkpoint)),
        "served_model_name": plan.model.name,
        "skip_tokenizer_init": True,
        "dtype": plan.model.dtype,
        "max_model_len": engine.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        "enforce_eager": engine.enforce_eager,
        "gpu_memory_utilization": engine.gpu_memory_utilization,
        "enable_prefix_caching": engine.enable_prefix_caching,
        "tensor_parallel_size": layout.tensor_parallel_size,
        "pipeline_parallel_size": layout.pipeline_parallel_size,
        "enable_expert_parallel": layout.expert_parallel_size > 1,
        "distributed_executor_backend": "ray" if layout.accelerators_per_rank > 1 else "uni",
        # Lower is sooner, as in Submit.priority; equal priorities stay first come, first served.
        "scheduling_policy": "priority",
        "enable_log_requests": False,
        "disable_log_stats": True,
    }
    if engine.kv_cache_dtype is not None:
        arguments["kv_cache_dtype"] = engine.kv_cache_dtype
    if engine.all2all_backend is not None:
        arguments["all2all_backend"] = engine.all2all_backend
    if engine.num_speculative_tokens is not None:
        arguments["speculative_config"] = {"method": "mtp", "num_speculative_tokens": engine.num_speculative_tokens}
    if plan.fleet.kv_cache_gib_per_rank is not None:
        arguments |= rehearsal_arguments(kv_cache_gib=plan.fleet.kv_cache_gib_per_rank)
    if settings is not None and settings.load_format is not None:
        arguments["load_format"] = settings.load_format
    if settings is not None and settings.otlp_endpoint is not None:
        arguments["otlp_traces_endpoint"] = settings.otlp_endpoint
    if gang.size > 1:
        arguments |= {
            "data_parallel_size": gang.size,
            "data_parallel_rank": gang.rank,
            "data_parallel_address": gang.address,
            "data_parallel_rpc_port": gang.port,
        }
    return arguments


def start(arguments: dict[str, Any], placement_group: Any, on_step: StepHook, *, vllm_metrics: bool = False) -> Any:
    """Start vLLM in this process and its children; blocks until the weights are loaded. Needs a running event loop.

    ``on_step(outputs, scheduler_stats)`` is called after each engine step, with the new tokens of every request that
    got some. ``vllm_metrics`` exports vLLM's own through Ray's agent on this node.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.envs import enable_envs_cache
    from vllm.usage.usage_lib import UsageContext
    from vllm.utils.gc_utils import freeze_gc_heap
    from vllm.v1.metrics.loggers import PrometheusStatLogger
    from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

    observed = vllm_metrics or arguments.get("otlp_traces_endpoint") is not None
    engine_class, step_logger = token_engine(on_step, observed=observed)
    args = AsyncEngineArgs(**arguments)
    config = args.create_engine_config(UsageContext.ENGINE_CONTEXT)
    config.parallel_config.placement_group = placement_group
    engine = engine_class.from_vllm_config(
        config,
        usage_context=UsageContext.ENGINE_CONTEXT,
        stat_loggers=[step_logger, *([RayPrometheusStatLogger] if vllm_metrics else [])],
        enable_log_requests=False,
        disable_log_stats=True,
    )
    # What vLLM's own server does once it is up, and what only its server needs: series of a registry nobody reads here
    # (a tenth of this process' work for a token), the environment read again for each, a heap that no longer changes
    # walked by the garbage collector.
    loggers = engine.logger_manager
    loggers.stat_loggers = [logger for logger in loggers.stat_loggers if type(logger) is not PrometheusStatLogger]
    enable_envs_cache()
    freeze_gc_heap()
    return engine


def cache_of(engine: Any) -> tuple[int, int]:
    """Tokens the rank's KV cache holds, and those of a block of it."""
    cache = engine.vllm_config.cache_config
    usable = max(0, int(cache.num_gpu_blocks or 0) - 1)  # vLLM keeps one block for padding
    return usable * int(cache.block_size), int(cache.block_size)
