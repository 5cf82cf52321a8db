"""A Plan becomes a Ray Serve application: one deployment a pool, one replica a data-parallel rank, gangs whole.

The token path does not pass through Serve: its proxies are off, and it places, watches and restarts.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from r1_cluster.plan import Plan, Pool

from r1_serve.errors import StartupError
from r1_serve.rehearsal.settings import environment
from r1_serve.settings import WorkerSettings, load
from r1_serve.workers.autoscaling import autoscaling
from r1_serve.workers.progress import serves_messages, told
from r1_serve.workers.rank import Rank

HEALTH_CHECK_PERIOD_S = 2.0
HEALTH_CHECK_TIMEOUT_S = 30.0
SHUTDOWN_GRACE_S = 15.0
START_ATTEMPTS = 3  # a broken checkpoint fails every time: say so soon


def pool_resource(pool: Pool) -> str:
    """The Ray resource that the nodes of a pool have, one for each accelerator.

    KubeRay takes a name that ends with "gpu" for GPUs: hence a suffix, not a prefix.
    """
    return f"r1-{pool.name}-pool"


def deployment_options(plan: Plan, pool: Pool, *, threads: int, max_gangs: int | None = None) -> dict[str, Any]:
    """Keyword arguments of ``serve.deployment``: one replica a rank, holding one bundle an accelerator; ``max_gangs``
    turns autoscaling on.

    A rank of one accelerator computes in the replica, which therefore holds it; with more, vLLM's Ray workers hold
    them and the replica only drives. Of several pools each keeps to the nodes that have its :func:`pool_resource`.
    """
    from ray.serve.config import GangSchedulingConfig

    layout = pool.layout
    alone = layout.accelerators_per_rank == 1
    own = {pool_resource(pool): 1.0} if len(plan.pools) > 1 else {}
    driver = {"CPU": 0.1, "GPU": 1.0, **own}
    environment_variables = environment(threads=threads) if plan.fleet.accelerator == "cpu" else {}
    return {
        "name": f"rank-{pool.name}",
        **(
            {"num_replicas": pool.gangs * layout.data_parallel_size}
            if max_gangs is None
            else {"autoscaling_config": autoscaling(pool, max_gangs)}
        ),
        "gang_scheduling_config": GangSchedulingConfig(gang_size=layout.data_parallel_size),
        "placement_group_bundles": [driver] + [{"GPU": 1.0, **own}] * (layout.accelerators_per_rank - 1),
        "ray_actor_options": {
            "num_cpus": 0.1,
            "num_gpus": 1 if alone else 0,
            "runtime_env": {"env_vars": environment_variables},
        },
        "health_check_period_s": HEALTH_CHECK_PERIOD_S,
        "health_check_timeout_s": HEALTH_CHECK_TIMEOUT_S,
        "graceful_shutdown_timeout_s": SHUTDOWN_GRACE_S,
        "max_constructor_retry_count": START_ATTEMPTS,
    }


def build(plan: Plan, pool: Pool, settings: WorkerSettings, *, threads: int = 1) -> Any:
    """The Serve application of one pool."""
    from ray import serve

    deployment = serve.deployment(**deployment_options(plan, pool, threads=threads, max_gangs=settings.max_gangs))(Rank)
    return deployment.bind(plan.model_dump_json(), pool.name, settings.model_dump_json())


def _servable(plan: Plan, settings: WorkerSettings) -> WorkerSettings:
    """``settings``, where these workers can serve ``plan`` under them. Raises StartupError."""
    if plan.separate:
        raise StartupError(
            f"plan {plan.name} has prefill and decode pools, and these workers do not hand over KV: plan with "
            "`r1 plan --pools unified`, or run the lines of `r1 plan --emit vllm-command`"
        )
    most = settings.max_gangs
    for pool in plan.pools:
        if most is not None and most < pool.gangs:
            raise StartupError(f"R1_MAX_GANGS is {most}, below the plan's {pool.gangs} gangs of pool {pool.name}")
    return settings


class ServeArguments(BaseModel):
    """``args`` of an application in a Serve config file, such as a RayService's ``serveConfigV2``."""

    model_config = ConfigDict(extra="forbid")

    plan: str = Field(description="a .yaml file on every node, or a shipped plan's name")
    pool: str | None = Field(default=None, description="default: the plan's only one")
    routers: str | None = None
    threads: int = Field(default=1, ge=1)


def configured(arguments: dict[str, Any]) -> Any:
    """The application of a Serve config file: ``import_path: r1_serve.workers.application:configured``.

    ``arguments`` are :class:`ServeArguments`; Serve would make them itself only where annotations are not strings.
    Raises PlanError, and StartupError where the plan has no such pool or an argument is malformed.
    """
    try:
        args = ServeArguments.model_validate(arguments)
    except ValidationError as e:
        raise StartupError("; ".join(f"args.{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in e.errors())) from e
    plan = Plan.load(args.plan)
    found = [pool for pool in plan.pools if args.pool in (None, pool.name)]
    if len(found) != 1:
        raise StartupError(f"args.pool is {args.pool}: plan {plan.name} has {', '.join(p.name for p in plan.pools)}")
    settings = _servable(plan, load(WorkerSettings, routers=args.routers))
    return build(plan, found[0], settings, threads=args.threads)


def app_name(plan: Plan, pool: Pool) -> str:
    return f"{plan.name}-{pool.name}"


def deploy(plan: Plan, *, routers: str | None = None, threads: int = 1) -> None:
    """Start every rank of ``plan`` on the Ray cluster this process is connected to; return once all are healthy.

    ``routers`` is ``host:port,…``, by default the environment's; ``threads`` is each CPU worker's, GPUs ignore it.
    Raises StartupError where an address is malformed or Serve gives up on the replicas.
    """
    from ray import serve
    from ray.serve.config import ProxyLocation

    settings = _servable(plan, load(WorkerSettings, routers=routers))
    serve.start(proxy_location=ProxyLocation.Disabled)
    for pool in plan.pools:
        name = app_name(plan, pool)
        try:
            with told(partial(serves_messages, name)):
                serve.run(build(plan, pool, settings, threads=threads), name=name, route_prefix=None)
        except RuntimeError as e:
            raise StartupError(f"the ranks of pool {pool.name} did not start: {_why(name, e)}") from e


def _why(app: str, error: RuntimeError) -> str:
    """What a rank died of: Serve's own error names only the deployment."""
    from ray import serve

    status = serve.status().applications.get(app)
    told = [deployment.message for deployment in status.deployments.values()] if status else []
    return cause("\n".join(told)) or cause(str(error)) or "no reason given"


def cause(text: str) -> str:
    """The exception at the bottom of a traceback, on one line; without one the last line there is."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[A-Za-z_.]*(Error|Exception|Exit)\b", line)]
    return (named or lines or [""])[-1][:400]


def undeploy() -> None:
    """End every rank and Serve itself."""
    from ray import serve

    serve.shutdown()
