"""Tells the ranks once a second how much is asked of their fleet: Serve's controller sizes it by what they pass on.

The numbers go down the streams that are there anyway. The controller needs to find no router, and none is polled.
"""

from __future__ import annotations

import asyncio

from r1_serve.protos import fleet_pb2 as pb
from r1_serve.router.service import Service

INTERVAL_S = 1.0


async def tell_demand(service: Service, interval_s: float = INTERVAL_S) -> None:
    """For ever, to every attached rank that wants to know."""
    while True:
        await asyncio.sleep(interval_s)
        for name in service.catalog.models:
            curious = [rank for rank in service.ranks.of(name) if rank.hello.wants_demand]
            if curious:
                message = pb.RouterMessage(demand=demand(service, name))
                for rank in curious:
                    rank.outbox.put_nowait(message)


def demand(service: Service, model: str) -> pb.Demand:
    load = service.desk.load(model)
    return pb.Demand(
        queued=load.queued, wait_s=load.wait_s, pressure=load.placed_pressure, slo_burn=service.slo(model).burn()
    )
