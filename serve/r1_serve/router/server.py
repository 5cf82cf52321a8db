"""The router process: HTTP and gRPC on one event loop, from the ports' opening to a quick drain."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import uvicorn
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry
from r1_cluster.plan import Plan
from r1_cluster.routing import policy

from r1_serve import logs
from r1_serve.errors import StartupError
from r1_serve.fleet_token import source
from r1_serve.protos import fleet_pb2, fleet_pb2_grpc
from r1_serve.router.announce import announce
from r1_serve.router.demand import tell_demand
from r1_serve.router.door import Door
from r1_serve.router.fleet import Fleet
from r1_serve.router.gauges import PlanCollector, QueueCollector, RankCollector
from r1_serve.router.http.app import application
from r1_serve.router.http.limits import Limits
from r1_serve.router.http.wire import LIMITS, WiredProtocol
from r1_serve.router.metrics import Metrics
from r1_serve.router.models import Catalog
from r1_serve.router.north import SERVICE, Reasoning
from r1_serve.router.ports import listen, taken
from r1_serve.router.ranks import Ranks
from r1_serve.router.service import Service
from r1_serve.router.siblings import Member, Siblings, Signpost
from r1_serve.settings import RouterSettings
from r1_serve.tracing import tracing

logger = logging.getLogger(__name__)

# A dead worker is noticed within ten seconds, and workers may ping as often as they like.
GRPC_OPTIONS = (
    ("grpc.keepalive_time_ms", 5000),
    ("grpc.keepalive_timeout_ms", 5000),
    ("grpc.http2.ping_timeout_ms", 5000),  # the keepalive's own timeout only holds where this one is not longer
    ("grpc.max_connection_idle_ms", 300_000),  # of clients without a call; workers always have one
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
)
# Without it a second router on the same port is refused instead of silently sharing it.
_ALONE, _SHARED = ("grpc.so_reuseport", 0), ("grpc.so_reuseport", 1)


def serve(plans: Sequence[Plan], settings: RouterSettings, member: Member | None = None) -> None:
    """Run a router until SIGTERM or SIGINT, alone or as one of several processes. Raises StartupError."""
    import uvloop

    logs.configure(settings)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_until_signalled(plans, settings, member))


async def _until_signalled(plans: Sequence[Plan], settings: RouterSettings, member: Member | None) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    router = Router(plans, settings, CollectorRegistry(), member=member)
    await router.start()
    gc.freeze()  # modules and tokenizers stay: the collector need not walk them again and again under load
    try:
        await stop.wait()
    finally:
        await router.stop()


class Router:
    """Everything of one router. ``start`` opens both ports, ``stop`` drains and closes them."""

    def __init__(
        self,
        plans: Sequence[Plan],
        settings: RouterSettings,
        registry: CollectorRegistry,
        exporter: Any = None,
        *,
        member: Member | None = None,
    ) -> None:
        """``exporter`` of spans is a test's. Loads the checkpoints' tokenizers. Raises StartupError."""
        try:
            chosen = policy(settings.policy)
        except ValueError as e:
            raise StartupError(f"R1_POLICY: {e}") from e
        self._settings = settings
        self._member = member
        self._siblings = Siblings(member, settings.host, registry) if member else None
        self._grpc: list[grpc.aio.Server] = []
        self._tracing = tracing(settings, "r1-router", exporter)
        self.catalog = Catalog(plans)
        self.metrics = Metrics(registry)
        self._door = Door(source(settings), self.metrics)
        self.ranks = Ranks(on_change=self._changed)
        self.service = Service(self.catalog, self.ranks, chosen, self.metrics, settings, tracing=self._tracing)
        self.ranks.on_leave = self.service.desk.left
        self.ranks.on_kv = self.service.desk.kv_changed
        registry.register(RankCollector(self.ranks, self.catalog.models))
        registry.register(QueueCollector(self.service))
        registry.register(PlanCollector(plans))
        self.http_port = self.grpc_port = 0
        self._health = health_aio.HealthServicer()
        self._publishing: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Raises StartupError where a port is taken."""
        sock = listen(self._settings.host, self._settings.http_port, shared=self._member is not None)
        try:
            await self._start_grpc()
        except BaseException:
            sock.close()
            for server in self._grpc:
                await server.stop(None)
            raise
        self.http_port = sock.getsockname()[1]
        self._http = _Http(application(self.service, self._siblings), Limits.of(self._settings, self.metrics))
        self._http_task = asyncio.create_task(self._http.run(sock))
        await self._http.listening.wait()
        self._sharing = asyncio.create_task(self.service.sharing.run())
        self._telling = asyncio.create_task(tell_demand(self.service))
        if self._settings.announce is not None:
            announce(self._settings.announce, http_port=self.http_port, grpc_port=self.grpc_port)
        logger.info("http on %d, grpc on %d: %s", self.http_port, self.grpc_port, ", ".join(self.catalog.models))

    async def stop(self) -> None:
        """Refuse new requests, let running ones go on for ``drain_s``, end the rest with RouterStopping."""
        draining = asyncio.create_task(self.service.drain(self._settings.drain_s))
        self._changed()
        await draining
        self._telling.cancel()
        self._http.should_exit = True
        await self._http_task
        self._sharing.cancel()
        await asyncio.gather(*(server.stop(0.5) for server in self._grpc))
        await asyncio.gather(*self._publishing)  # the ranks just detached
        if self._tracing is not None:
            self._tracing.stop()

    async def _start_grpc(self) -> None:
        """One server; as one of several processes two: clients' shared port, and this one's own for workers."""
        settings, member, ranks = self._settings, self._member, self.ranks
        shared = self._server(_SHARED if member else _ALONE)
        shared.add_generic_rpc_handlers((Reasoning(self.service).handler(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, shared)
        names = (
            SERVICE,
            fleet_pb2.DESCRIPTOR.services_by_name["Fleet"].full_name,
            health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
            reflection.SERVICE_NAME,
        )
        reflection.enable_server_reflection(names, shared)
        router_id, heard = self.service.router_id, self.service.sharing.receive
        fleet = Fleet(self.catalog, ranks, self.metrics, router_id, heard, self._door)
        own = shared
        if member is not None and self._siblings is not None:
            fleet_pb2_grpc.add_FleetServicer_to_server(Signpost(member, self._door), shared)
            own = self._server(_SHARED)  # with the socket by which the supervisor keeps the port
            own.add_generic_rpc_handlers((self._siblings.handler(),))
            _add_port(own, settings.host, member.fleet_port, "fleet")
        fleet_pb2_grpc.add_FleetServicer_to_server(fleet, own)
        self.grpc_port = _add_port(shared, settings.host, settings.grpc_port, "grpc")
        await self._publish_health()
        for server in self._grpc:
            await server.start()

    def _server(self, sharing: tuple[str, int]) -> grpc.aio.Server:
        self._grpc.append(grpc.aio.server(options=(*GRPC_OPTIONS, sharing)))
        return self._grpc[-1]

    def _changed(self) -> None:
        self.service.desk.look()
        task = asyncio.get_running_loop().create_task(self._publish_health())
        self._publishing.add(task)
        task.add_done_callback(self._publishing.discard)

    async def _publish_health(self) -> None:
        status = health_pb2.HealthCheckResponse
        for name in ("", SERVICE):
            await self._health.set(name, status.SERVING if self.service.ready else status.NOT_SERVING)


class _Http(uvicorn.Server):
    """uvicorn within our own loop, signals and sockets."""

    def __init__(self, app: object, limits: Limits) -> None:
        super().__init__(
            uvicorn.Config(
                app,  # type: ignore[arg-type]
                http=WiredProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=2,
            )
        )
        self.listening = asyncio.Event()
        self._limits = limits

    async def run(self, sock: socket.socket) -> None:  # type: ignore[override]
        await self.serve(sockets=[sock])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # uvicorn hands this to each connection's protocol, and nothing else of ours.
        self.lifespan.state[LIMITS] = self._limits
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _add_port(server: grpc.aio.Server, host: str, port: int, door: str) -> int:
    try:
        found: int = server.add_insecure_port(f"{f'[{host}]' if ':' in host else host}:{port}")
    except RuntimeError as e:
        raise taken(host, port, door) from e
    return found
