"""``r1 router``: one process, several of them, or (by a hidden option) one of several."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from r1_cluster.plan import Plan

from r1_serve.settings import RouterSettings


def run(plans: Sequence[str], settings: RouterSettings, member: str | None = None) -> None:
    """Until SIGTERM or SIGINT. Raises PlanError, StartupError."""
    from r1_serve.router.siblings import Member
    from r1_serve.router.supervisor import member_json, member_of, supervise

    loaded = [Plan.load(name) for name in plans]
    if settings.processes == 1 or member is not None:
        from r1_serve.router.server import serve

        serve(loaded, settings, None if member is None else member_of(member))
        return

    def command(which: Member, own: RouterSettings, announce: Path) -> list[str]:
        ports = ["--http-port", str(own.http_port), "--grpc-port", str(own.grpc_port), "--host", own.host]
        options = [*ports, "--announce", str(announce), "--member", member_json(which)]
        return [sys.executable, "-m", "r1_serve.cli", "router", *(f"--plan={name}" for name in plans), *options]

    from r1_serve import logs

    logs.configure(settings)
    supervise(settings, command)
