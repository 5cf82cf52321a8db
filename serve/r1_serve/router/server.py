"""The router process: HTTP and gRPC on one event loop, from the ports' opening to a quick drain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import uuid
from collections.abc import Iterator, Sequence

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
from r1_serve.protos import fleet_pb2, fleet_pb2_grpc
from r1_serve.router.announce import announce
from r1_serve.router.fleet import Fleet
from r1_serve.router.http.app import application
from r1_serve.router.http.wire import WiredProtocol
from r1_serve.router.metrics import Metrics
from r1_serve.router.models import Catalog
from r1_serve.router.north import SERVICE, Reasoning
from r1_serve.router.ranks import Ranks
from r1_serve.router.service import Service
from r1_serve.settings import RouterSettings

logger = logging.getLogger(__name__)

# A dead worker is noticed within ten seconds, and workers may ping as often as they like. Without SO_REUSEPORT a
# second router on the same port is refused instead of silently sharing it.
GRPC_OPTIONS = (
    ("grpc.keepalive_time_ms", 5000),
    ("grpc.keepalive_timeout_ms", 5000),
    ("grpc.http2.ping_timeout_ms", 5000),  # the keepalive's own timeout only holds where this one is not longer
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.so_reuseport", 0),
)


def serve(plans: Sequence[Plan], settings: RouterSettings) -> None:
    """Run a router until SIGTERM or SIGINT. Raises StartupError."""
    import uvloop

    logs.configure(settings)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_until_signalled(plans, settings))


async def _until_signalled(plans: Sequence[Plan], settings: RouterSettings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    router = Router(plans, settings, CollectorRegistry())
    await router.start()
    try:
        await stop.wait()
    finally:
        await router.stop()


class Router:
    """Everything of one router. ``start`` opens both ports, ``stop`` drains and closes them."""

    def __init__(self, plans: Sequence[Plan], settings: RouterSettings, registry: CollectorRegistry) -> None:
        """Loads the checkpoints' tokenizers. Raises StartupError."""
        try:
            chosen = policy(settings.policy)
        except ValueError as e:
            raise StartupError(f"R1_POLICY: {e}") from e
        self._settings = settings
        self.catalog = Catalog(plans)
        self.metrics = Metrics(registry)
        self.ranks = Ranks(on_change=self._changed)
        self.metrics.watch(self.ranks, self.catalog.models)
        self.service = Service(self.catalog, self.ranks, chosen, self.metrics, settings)
        self.ranks.on_leave = self.service.desk.left
        self.http_port = self.grpc_port = 0
        self._health = health_aio.HealthServicer()
        self._publishing: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Raises StartupError where a port is taken."""
        sock = _listen(self._settings.host, self._settings.http_port)
        try:
            await self._start_grpc()
        except BaseException:
            sock.close()
            raise
        self.http_port = sock.getsockname()[1]
        self._http = _Http(application(self.service))
        self._http_task = asyncio.create_task(self._http.run(sock))
        await self._http.listening.wait()
        if self._settings.announce is not None:
            announce(self._settings.announce, http_port=self.http_port, grpc_port=self.grpc_port)
        logger.info("http on %d, grpc on %d: %s", self.http_port, self.grpc_port, ", ".join(self.catalog.models))

    async def stop(self) -> None:
        """Refuse new requests, let running ones go on for ``drain_s``, end the rest with RouterStopping."""
        draining = asyncio.create_task(self.service.drain(self._settings.drain_s))
        self._changed()
        await draining
        self._http.should_exit = True
        await self._http_task
        await self._grpc.stop(0.5)
        await asyncio.gather(*self._publishing)  # the ranks just detached

    async def _start_grpc(self) -> None:
        self._grpc = grpc.aio.server(options=GRPC_OPTIONS)
        self._grpc.add_generic_rpc_handlers((Reasoning(self.service).handler(),))
        fleet = Fleet(self.catalog, self.ranks, self.metrics, router_id=uuid.uuid4().hex)
        fleet_pb2_grpc.add_FleetServicer_to_server(fleet, self._grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        names = (
            SERVICE,
            fleet_pb2.DESCRIPTOR.services_by_name["Fleet"].full_name,
            health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
            reflection.SERVICE_NAME,
        )
        reflection.enable_server_reflection(names, self._grpc)
        host = f"[{self._settings.host}]" if ":" in self._settings.host else self._settings.host
        try:
            self.grpc_port = self._grpc.add_insecure_port(f"{host}:{self._settings.grpc_port}")
        except RuntimeError as e:
            raise _taken(self._settings.host, self._settings.grpc_port, "grpc") from e
        await self._publish_health()
        await self._grpc.start()

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

    def __init__(self, app: object) -> None:
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

    async def run(self, sock: socket.socket) -> None:  # type: ignore[override]
        await self.serve(sockets=[sock])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as e:
        sock.close()
        raise _taken(host, port, "http") from e
    return sock


def _taken(host: str, port: int, door: str) -> StartupError:
    return StartupError(
        f"cannot listen on {host}:{port}: end what uses the port, or choose another with --{door}-port "
        f"or R1_{door.upper()}_PORT (0 picks a free one)"
    )
