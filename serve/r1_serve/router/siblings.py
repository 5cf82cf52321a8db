"""Several router processes behind one address: where workers find each, and one page of metrics for all.

Clients' ports are shared (SO_REUSEPORT: the kernel spreads connections). Each process also listens on a gRPC port of
its own, for workers, who must reach every one, and for its siblings.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from prometheus_client import CollectorRegistry, generate_latest

from r1_serve.errors import R1Error
from r1_serve.protos import fleet_pb2 as pb
from r1_serve.protos import fleet_pb2_grpc as rpc
from r1_serve.protos.version import PROTOCOL_VERSION
from r1_serve.router.door import Door

logger = logging.getLogger(__name__)

SERVICE = "r1.router.v1.Siblings"
SCRAPE_TIMEOUT_S = 2.0
UP = "r1_router_process_up"


@dataclass(frozen=True)
class Member:
    """One of several processes: which, and the ports for workers of all of them."""

    index: int
    fleet_ports: tuple[int, ...]

    @property
    def fleet_port(self) -> int:
        return self.fleet_ports[self.index]


class Signpost(rpc.FleetServicer):
    """On the shared port a worker only learns where the processes are: its stream there would reach just one."""

    def __init__(self, member: Member, door: Door) -> None:
        self._member = member
        self._door = door

    async def Attach(self, messages: AsyncIterator[pb.WorkerMessage], context: grpc.aio.ServicerContext) -> None:
        try:
            self._door.check(context)
        except R1Error as e:
            await self._door.refuse(context, e)
            return
        welcome = pb.Welcome(protocol_version=PROTOCOL_VERSION, ports=self._member.fleet_ports)
        await context.write(pb.RouterMessage(welcome=welcome))


class Siblings:
    """This process's metrics for the others, and theirs for whoever scrapes this one."""

    def __init__(self, member: Member, host: str, registry: CollectorRegistry) -> None:
        self._member = member
        self._host = host
        self._registry = registry

    def handler(self) -> grpc.GenericRpcHandler:
        async def metrics(_: bytes, context: grpc.aio.ServicerContext) -> bytes:
            return generate_latest(self._registry)

        return grpc.method_handlers_generic_handler(SERVICE, {"Metrics": grpc.unary_unary_rpc_method_handler(metrics)})

    async def metrics(self) -> bytes:
        """All processes' metrics in Prometheus's text format, each sample with a ``process`` label. One that does not
        answer is only missing, and says so in ``r1_router_process_up``."""
        pages = await asyncio.gather(*(self._page(index) for index in range(len(self._member.fleet_ports))))
        return merged({str(index): page for index, page in enumerate(pages)})

    async def _page(self, index: int) -> bytes | None:
        if index == self._member.index:
            return generate_latest(self._registry)
        host = f"[{self._host}]" if ":" in self._host else self._host
        address = f"{host}:{self._member.fleet_ports[index]}"
        options: list[tuple[str, Any]] = [("grpc.max_receive_message_length", 64 << 20)]
        try:
            async with grpc.aio.insecure_channel(address, options=options) as channel:
                page: bytes = await channel.unary_unary(f"/{SERVICE}/Metrics")(b"", timeout=SCRAPE_TIMEOUT_S)
                return page
        except grpc.aio.AioRpcError as e:
            logger.warning("no metrics of router process %d: %s", index, e.code().name)
            return None


def merged(pages: Mapping[str, bytes | None]) -> bytes:
    """Exposition pages by process as one: a metric's lines together, as the format demands. By lines, not parsed: a
    page has thousands, and the token path waits meanwhile."""
    families: dict[bytes, list[bytes]] = {}
    for process, page in pages.items():
        label = f'process="{process}"'.encode()
        family: list[bytes] = []
        for line in (page or b"").splitlines():
            if line.startswith(b"# "):
                name = line.split(b" ", 3)[2]
                family = families.setdefault(name, [])
                if line not in family[:2]:
                    family.append(line)
            elif line:
                family.append(_labelled(line, label))
    ups = [f'{UP}{{process="{process}"}} {int(page is not None)}'.encode() for process, page in pages.items()]
    up = [f"# HELP {UP} Whether the process answered this scrape".encode(), f"# TYPE {UP} gauge".encode(), *ups]
    return b"\n".join([*(line for family in families.values() for line in family), *up, b""])


def _labelled(line: bytes, label: bytes) -> bytes:
    name, brace, rest = line.partition(b"{")
    if brace and b" " not in name:
        return name + b"{" + label + b"," + rest
    name, _, rest = line.partition(b" ")
    return name + b"{" + label + b"} " + rest
