"""Who a rank steps with: the data-parallel gang, its meeting point and the rank's accelerators within it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MEETING_TIMEOUT_S = 120.0
_POLL_S = 0.2


@dataclass(frozen=True)
class Gang:
    """One rank's view of its gang.

    ``bundles`` are this rank's bundle indices in ``placement_group``, one an accelerator; ``address:port`` is where
    vLLM's data-parallel ranks meet.
    """

    gang_id: str
    rank: int
    size: int
    placement_group: Any
    bundles: tuple[int, ...]
    address: str
    port: int


def bundles_by_node(node_of: Mapping[int, str], first_node: str) -> tuple[int, ...]:
    """Bundle indices, those of one node together and ``first_node``'s first.

    A placement group's indices say nothing of nodes: without this order a rank's tensor workers could straddle two.
    vLLM's global rank 0 hosts the gang's store at the address that rank 0 announced, so that rank 0's node must lead,
    or every worker waits for a host that does not listen.
    """
    return tuple(sorted(node_of, key=lambda index: (node_of[index] != first_node, node_of[index], index)))


def share(order: tuple[int, ...], rank: int, accelerators: int) -> tuple[int, ...]:
    """The ``accelerators`` bundles of ``rank`` among all of the gang's, in ``order``."""
    return order[rank * accelerators : (rank + 1) * accelerators]


async def join(accelerators: int) -> Gang:
    """Inside a Serve replica: find the gang, meet its other ranks, claim this rank's bundles.

    Raises TimeoutError where rank 0 has not announced itself within ``MEETING_TIMEOUT_S``: Serve then restarts the
    gang.
    """
    import ray
    from ray import serve
    from ray.util.placement_group import get_placement_group, placement_group_table

    context = serve.get_replica_context().gang_context
    if context is None:
        raise RuntimeError("a rank must be deployed with a GangSchedulingConfig: see r1_serve.workers.application")
    if context.rank == 0:
        meeting = {
            "address": ray.util.get_node_ip_address(),
            "port": _free_port(),
            "node": ray.get_runtime_context().get_node_id(),
        }
        _announce(context.gang_id, meeting)
    else:
        meeting = await _await_announcement(context.gang_id)
    group = get_placement_group(context.pg_name)
    order = bundles_by_node(placement_group_table(group)["bundles_to_node_id"], meeting["node"])
    return Gang(
        gang_id=context.gang_id,
        rank=context.rank,
        size=context.world_size,
        placement_group=group,
        bundles=share(order, context.rank, accelerators),
        address=meeting["address"],
        port=meeting["port"],
    )


def bind(gang: Gang) -> None:
    """Tell vLLM's Ray executor, through the environment its process inherits, which cluster and bundles to use.

    Without the address it would look for a cluster in Ray's default folder, and find another one or start its own.
    """
    import ray

    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    os.environ["VLLM_RAY_BUNDLE_INDICES"] = ",".join(map(str, gang.bundles))


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("", 0))
        port: int = s.getsockname()[1]
        return port


def _key(gang_id: str) -> bytes:
    return f"r1:gang:{gang_id}".encode()


def _announce(gang_id: str, meeting: Mapping[str, Any]) -> None:
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(_key(gang_id), json.dumps(meeting).encode(), overwrite=True)


async def _await_announcement(gang_id: str) -> dict[str, Any]:
    from ray.experimental.internal_kv import _internal_kv_get

    async with asyncio.timeout(MEETING_TIMEOUT_S):
        while (value := _internal_kv_get(_key(gang_id))) is None:  # noqa: ASYNC110  # another process writes it
            await asyncio.sleep(_POLL_S)
    meeting: dict[str, Any] = json.loads(value)
    return meeting
