"""One data-parallel rank: a Ray Serve replica that starts its engine, attaches to the routers, reports its health."""

from __future__ import annotations

import asyncio
import logging
import uuid

from r1_cluster.plan import Plan, Pool

from r1_serve import fleet_token, logs
from r1_serve.protos import fleet_pb2 as pb
from r1_serve.protos.version import PROTOCOL_VERSION
from r1_serve.settings import FleetSettings, WorkerSettings, load
from r1_serve.tracing import tracing
from r1_serve.workers import engine as engines
from r1_serve.workers import gang as gangs
from r1_serve.workers.attachment import Attachments, targets
from r1_serve.workers.autoscaling import Demands
from r1_serve.workers.generations import Generations
from r1_serve.workers.kv_events import KvEvents, endpoint_of, fits
from r1_serve.workers.leaving import Doorway

logger = logging.getLogger(__name__)


class Rank:
    """Started by Ray Serve with the plan as JSON, so that a worker node needs no file. Serves no Serve requests."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, plan_json: str, pool_name: str, settings_json: str
    ) -> None:
        plan = Plan.model_validate_json(plan_json)
        pool = next(pool for pool in plan.pools if pool.name == pool_name)
        settings = WorkerSettings.model_validate_json(settings_json)
        logs.configure(settings)
        token = fleet_token.source(load(FleetSettings))  # this node's own: a wrong one is said before the weights load
        gang = await gangs.join(pool.layout.accelerators_per_rank)
        gangs.bind(gang)
        self._drain_s = settings.drain_s
        self._leave_s = settings.leave_s
        self._left = False
        self._doorway = Doorway(settings.run_dir)
        self._tracing = tracing(settings, "r1-worker")
        self._generations = Generations(tracing=self._tracing)
        arguments = engines.engine_arguments(plan, pool, gang, settings)
        self._kv_events = KvEvents() if plan.engine.enable_prefix_caching else None
        self._following: asyncio.Task[None] | None = None  # apart from the others: its end is no fault of the rank's
        if self._kv_events is not None:
            arguments |= self._kv_events.engine_arguments()
        self._engine = engines.start(
            arguments, gang.placement_group, self._generations.step, vllm_metrics=settings.vllm_metrics
        )
        self._generations.serve(self._engine)
        self._engine.output_handler.add_done_callback(lambda _: self._generations.fail())
        self._demands = Demands()
        greeting = hello(plan, pool, gang, *engines.cache_of(self._engine))
        greeting.wants_demand = settings.max_gangs is not None
        self._generations.hello = greeting
        self._attachments = Attachments(
            greeting,
            self._generations,
            targets(settings.routers),
            resolve_interval_s=settings.resolve_interval_s,
            demands=self._demands,
            token=token,
        )
        self._attaching = asyncio.create_task(self._attachments.run())
        self._tasks = [self._attaching, *map(asyncio.create_task, (self._generations.beat(), self._leave_when_asked()))]
        if self._kv_events is not None and fits(self._engine.vllm_config.cache_config.block_size):
            self._generations.kv_snapshot = self._kv_events.blocks.snapshot
            self._following = asyncio.create_task(
                self._kv_events.run(endpoint_of(self._engine), self._generations.kv_changed)
            )
        self._doorway.enter()
        logger.info("rank %d of gang %s is ready", gang.rank, gang.gang_id)

    async def check_health(self) -> None:
        """Called by Serve; raising makes it restart the whole gang."""
        if self._left:
            return  # its pod is about to end; a restart would only come back to it
        await self._engine.check_health()
        for task in self._tasks:
            if task.done():
                raise RuntimeError(f"a background task of the rank ended: {task.exception()!r}")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve every few seconds where the pool scales: what is asked of the fleet."""
        return self._demands.stats()

    async def _leave_when_asked(self) -> None:
        """`r1 leave` on this node: take nothing new, let what runs end for ``leave_s``, hand over the rest."""
        await self._doorway.asked()
        self._left = True
        self._attaching.cancel()
        await self._generations.drain(self._leave_s)
        await self._attachments.leave()
        self._doorway.gone()

    async def __del__(self) -> None:
        """Called by Serve once, before it ends the replica."""
        if not hasattr(self, "_tasks"):
            return
        for task in self._tasks:
            task.cancel()
        await self._generations.drain(self._drain_s)
        await self._attachments.leave()
        self._doorway.gone()
        self._engine.shutdown()
        if self._kv_events is not None:
            if self._following is not None:
                self._following.cancel()
            self._kv_events.close()
        if self._tracing is not None:
            self._tracing.stop()


def hello(plan: Plan, pool: Pool, gang: gangs.Gang, kv_tokens: int, block_tokens: int) -> pb.Hello:
    return pb.Hello(
        protocol_version=PROTOCOL_VERSION,
        worker_id=f"{plan.name}-{pool.name}-{gang.rank}-{uuid.uuid4().hex[:8]}",
        plan_name=plan.name,
        plan_hash=plan.hash,
        model=plan.model.name,
        pool=pool.name,
        gang_id=gang.gang_id,
        rank=gang.rank,
        gang_size=gang.size,
        capacity=pb.Capacity(
            kv_tokens=kv_tokens,
            max_num_seqs=plan.engine.max_num_seqs,
            max_model_len=plan.engine.max_model_len,
            block_tokens=block_tokens,
        ),
    )
