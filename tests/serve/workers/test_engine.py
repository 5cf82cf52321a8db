"""A Plan's numbers become the engine's."""

from __future__ import annotations

import pytest
from r1_cluster.plan import Plan, Pool, shipped
from r1_serve.errors import StartupError
from r1_serve.settings import WorkerSettings
from r1_serve.workers.application import (
    app_name,
    build,
    cause,
    configured,
    deploy,
    deployment_options,
)
from r1_serve.workers.engine import engine_arguments
from r1_serve.workers.gang import Gang


def gang_of(plan: Plan, rank: int = 0) -> Gang:
    size = plan.pools[0].layout.data_parallel_size
    return Gang("g", rank, size, placement_group=None, bundles=(), address="10.0.0.1", port=29500)


def arguments(name: str, rank: int = 0) -> dict[str, object]:
    plan = Plan.load(name)
    return engine_arguments(plan, plan.pools[0], gang_of(plan, rank))


@pytest.mark.parametrize("name", shipped())
def test_the_plans_limits_reach_the_engine(name: str) -> None:
    plan, found = Plan.load(name), arguments(name)
    assert found["max_model_len"] == plan.engine.max_model_len
    assert found["max_num_seqs"] == plan.engine.max_num_seqs
    assert found["skip_tokenizer_init"] is True


def test_drafts_are_the_checkpoints_own_layers() -> None:
    assert arguments("nano-mtp")["speculative_config"] == {"method": "mtp", "num_speculative_tokens": 1}
    assert "speculative_config" not in arguments("nano-tp1")


def test_a_wide_gangs_exchange_is_the_plans() -> None:
    plan = Plan.load("nano-dp2-ep2")
    engine = plan.engine.model_copy(update={"all2all_backend": "deepep_low_latency"})
    plan = plan.model_copy(update={"engine": engine})
    assert engine_arguments(plan, plan.pools[0], gang_of(plan))["all2all_backend"] == "deepep_low_latency"
    assert "all2all_backend" not in arguments("nano-dp2-ep2")


def test_a_lone_rank_knows_no_data_parallel_peers() -> None:
    assert not any("data_parallel" in key for key in arguments("nano-tp1"))
    assert arguments("nano-tp1")["enable_expert_parallel"] is False


def test_a_rank_of_one_accelerator_computes_in_its_own_process_and_more_go_through_ray() -> None:
    assert arguments("nano-tp1")["distributed_executor_backend"] == "uni"
    assert arguments("nano-dp2-ep2")["distributed_executor_backend"] == "uni"
    assert arguments("nano-tp2-ep2")["distributed_executor_backend"] == "ray"


def test_gang_ranks_meet_at_rank_zeros_address() -> None:
    found = arguments("nano-tp2-dp2-ep4", rank=1)
    assert found["data_parallel_size"] == 2
    assert found["data_parallel_rank"] == 1
    assert found["data_parallel_address"] == "10.0.0.1"
    assert found["data_parallel_rpc_port"] == 29500
    assert found["tensor_parallel_size"] == 2
    assert found["enable_expert_parallel"] is True


@pytest.mark.parametrize(
    ("name", "replicas", "gang_size", "bundles", "held"),
    [
        ("nano-tp1", 1, 1, 1, 1),
        ("nano-dp2-ep2", 2, 2, 1, 1),
        ("nano-tp2-ep2", 1, 1, 2, 0),
        ("nano-tp2-dp2-ep4", 2, 2, 2, 0),
    ],
)
def test_a_rank_is_a_replica_with_a_bundle_an_accelerator(
    name: str, replicas: int, gang_size: int, bundles: int, held: int
) -> None:
    plan = Plan.load(name)
    options = deployment_options(plan, plan.pools[0], threads=2)
    assert options["num_replicas"] == replicas
    assert options["gang_scheduling_config"].gang_size == gang_size
    assert [bundle["GPU"] for bundle in options["placement_group_bundles"]] == [1] * bundles
    # With tensor workers of its own the replica must leave its first bundle's accelerator to one of them.
    assert options["ray_actor_options"]["num_gpus"] == held
    assert options["ray_actor_options"]["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "2"


def test_gpu_ranks_are_given_no_cpu_settings() -> None:
    plan = Plan.load("nano-tp1")
    fleet = plan.fleet.model_copy(update={"accelerator": "H200", "kv_cache_gib_per_rank": None})
    gpu = plan.model_copy(update={"fleet": fleet})
    assert deployment_options(gpu, gpu.pools[0], threads=1)["ray_actor_options"]["runtime_env"]["env_vars"] == {}
    assert "kv_cache_memory_bytes" not in engine_arguments(gpu, gpu.pools[0], gang_of(gpu))


def test_the_kv_cache_has_the_plans_type_or_the_models_own() -> None:
    plan = Plan.load("nano-tp1")
    fp8 = plan.model_copy(update={"engine": plan.engine.model_copy(update={"kv_cache_dtype": "fp8"})})
    assert "kv_cache_dtype" not in engine_arguments(plan, plan.pools[0], gang_of(plan))
    assert engine_arguments(fp8, fp8.pools[0], gang_of(fp8))["kv_cache_dtype"] == "fp8"


def test_prefill_and_decode_pools_are_refused_before_anything_starts() -> None:
    plan = Plan.load("nano-tp1")
    pools = tuple(Pool(name=role, role=role) for role in ("prefill", "decode"))
    with pytest.raises(StartupError, match="do not hand over KV: plan with `r1 plan --pools unified`"):
        deploy(plan.model_copy(update={"pools": pools}))


def test_a_pool_becomes_an_application_ray_serve_accepts() -> None:
    from r1_serve.settings import WorkerSettings

    plan = Plan.load("nano-tp2-dp2-ep4")
    app = build(plan, plan.pools[0], WorkerSettings())
    assert app._bound_deployment.name == "rank-main"
    assert app_name(plan, plan.pools[0]) == "nano-tp2-dp2-ep4-main"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Traceback\n  File x\nValueError: no such checkpoint\n", "ValueError: no such checkpoint"),
        ("RayTaskError(OSError): a\n  at b\nOSError: disk\n\n  more about it", "OSError: disk"),
        ("failed to place", "failed to place"),
        ("", ""),
    ],
)
def test_why_a_rank_did_not_start_is_one_line(text: str, told: str) -> None:
    assert cause(text) == told


def test_streamed_weights_replace_the_folder_and_say_how_to_load() -> None:
    plan = Plan.load("nano-tp1")
    settings = WorkerSettings(weights="s3://models/r1", load_format="runai_streamer")
    found = engine_arguments(plan, plan.pools[0], gang_of(plan), settings)
    assert (found["model"], found["load_format"]) == ("s3://models/r1", "runai_streamer")
    assert "load_format" not in engine_arguments(plan, plan.pools[0], gang_of(plan), WorkerSettings())


def test_a_serve_config_names_plan_and_pool() -> None:
    application = configured({"plan": "nano-dp2-ep2", "pool": "main", "routers": "r1-attach:8001"})
    assert application._bound_deployment.name == "rank-main"
    with pytest.raises(StartupError, match=r"args\.pool is other: plan nano-dp2-ep2 has main"):
        configured({"plan": "nano-dp2-ep2", "pool": "other"})
    with pytest.raises(StartupError, match=r"args\.router: Extra inputs"):
        configured({"plan": "nano-tp1", "router": "r1:8001"})


def test_serve_calls_the_builder_with_what_the_file_says() -> None:
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as call

    application = call(configured, {"plan": "nano-tp1", "routers": "r1-attach:8001", "threads": 1})
    assert application._bound_deployment.name == "rank-main"
