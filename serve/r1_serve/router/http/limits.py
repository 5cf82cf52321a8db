"""What a connection may cost: how many there are, how long one may say nothing, how long one may read nothing."""

from __future__ import annotations

import asyncio
import contextlib
import math
import resource
import socket
from dataclasses import dataclass, field
from typing import Any

import orjson
from prometheus_client import Counter, Gauge

from r1_serve.errors import TooManyConnections
from r1_serve.router.http.errors import error_body
from r1_serve.router.metrics import Metrics
from r1_serve.settings import RouterSettings

SPARE_FILES = 256  # for gRPC, workers and the process itself


@dataclass
class Limits:
    """Of one process, shared by its connections."""

    most: int
    idle_s: float
    stall_s: float
    open: Gauge
    closed: Counter
    protocols: set[Any] = field(default_factory=set)
    idle: dict[Any, None] = field(default_factory=dict)  # those that wait for a request, longest first

    @classmethod
    def of(cls, settings: RouterSettings, metrics: Metrics) -> Limits:
        """As many as the settings and the open files of this process allow."""
        most = min(settings.max_connections, max(1, raise_open_files() - SPARE_FILES))
        limits = cls(most, settings.idle_s, settings.stall_s, metrics.connections, metrics.connections_closed)
        limits.open.set_function(lambda: len(limits.protocols))
        return limits

    def make_room(self) -> bool:
        """Whether one more connection may come. Where all are there, the longest idle one gives its place."""
        if len(self.protocols) >= self.most and self.idle:
            next(iter(self.idle)).give_up()
        return len(self.protocols) < self.most

    def refusal(self) -> bytes:
        """The answer to a connection too many, before it has said anything."""
        error = TooManyConnections(
            f"this router has {self.most} connections, as many as it takes: close idle ones, or retry", retry_after=1.0
        )
        body = orjson.dumps(error_body(error))
        return (
            b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
            b"connection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )

    def set_up(self, transport: asyncio.Transport) -> None:
        """Let the kernel end a connection whose client acknowledges nothing, whatever is left in its buffer."""
        sock = transport.get_extra_info("socket")
        with contextlib.suppress(OSError, AttributeError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, math.ceil(2000 * self.stall_s))


def raise_open_files() -> int:
    """Raise this process's limit of open files to what it may; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return soft if soft != resource.RLIM_INFINITY else 1 << 20
