"""``r1 router``: one process, several of them, or (by a hidden option) one of several."""

from __future__ import annotations

import ipaddress
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from r1_cluster.plan import Plan

from r1_serve.settings import RouterSettings

logger = logging.getLogger(__name__)


def run(plans: Sequence[str], settings: RouterSettings, member: str | None = None) -> None:
    """Until SIGTERM or SIGINT. Raises PlanError, StartupError."""
    from r1_serve import logs
    from r1_serve.fleet_token import source
    from r1_serve.router.siblings import Member
    from r1_serve.router.supervisor import member_json, member_of, supervise

    loaded = [Plan.load(name) for name in plans]
    logs.configure(settings)
    if member is None and source(settings)() is None and not _loopback(settings.host):
        logger.warning(
            "no fleet token, and this router listens on %s: whoever reaches its gRPC port can attach as a worker and "
            "be given prompts: give routers and workers R1_FLEET_TOKEN or R1_FLEET_TOKEN_FILE",
            settings.host,
        )
    if settings.processes == 1 or member is not None:
        from r1_serve.router.server import serve

        serve(loaded, settings, None if member is None else member_of(member))
        return

    def command(which: Member, own: RouterSettings, announce: Path) -> list[str]:
        ports = ["--http-port", str(own.http_port), "--grpc-port", str(own.grpc_port), "--host", own.host]
        options = [*ports, "--announce", str(announce), "--member", member_json(which)]
        return [sys.executable, "-m", "r1_serve.cli", "router", *(f"--plan={name}" for name in plans), *options]

    supervise(settings, command)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
