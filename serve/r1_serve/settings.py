"""The one place that reads the environment. Every variable starts with ``R1_``; bad values raise at start."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from r1_serve.errors import StartupError


class LogSettings(BaseSettings):
    """How a part logs: see logs.py."""

    model_config = SettingsConfigDict(env_prefix="R1_", frozen=True, extra="ignore")

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = Field(default="text", description="json: one object a line")


class TraceSettings(BaseSettings):
    """Whether and where traces go: see tracing.py. What else OpenTelemetry's exporter knows, it reads as ``OTEL_*``."""

    model_config = SettingsConfigDict(env_prefix="R1_", frozen=True, extra="ignore")

    otlp_endpoint: str | None = Field(
        default=None, pattern="^https?://", description="OTLP over gRPC, http://collector:4317; none: no traces"
    )
    trace_share: float = Field(default=1.0, ge=0, le=1, description="of requests whose client does not say itself")


class FleetSettings(BaseSettings):
    """By what routers and ranks know each other: see fleet_token.py. Each process reads its own, so that a token is in
    no message and no store of Ray's."""

    model_config = SettingsConfigDict(env_prefix="R1_", frozen=True, extra="ignore")

    fleet_token: SecretStr | None = Field(
        default=None, description="the same for routers and ranks; none: whoever reaches the gRPC port may attach"
    )
    fleet_token_file: Path | None = Field(
        default=None, description="a file that holds it, read again at each attachment; R1_FLEET_TOKEN goes before it"
    )


class RouterSettings(LogSettings, TraceSettings, FleetSettings):
    """Where the router listens and what it lets in: ``R1_HTTP_PORT=8000 r1 router``, or the command's own flags."""

    host: str = "127.0.0.1"
    http_port: int = Field(default=8000, ge=0, le=65535, description="0 picks a free one")
    grpc_port: int = Field(default=8001, ge=0, le=65535, description="clients and workers; 0 picks a free one")
    processes: int = Field(default=1, ge=1, le=64, description="routers that share the ports")
    fleet_port: int = Field(
        default=0,
        ge=0,
        le=65000,
        description="of several processes: the first of their ports for workers; 0: those after the gRPC port",
    )
    max_body_bytes: int = Field(default=4 << 20, ge=1024)
    max_connections: int = Field(default=8192, ge=1, description="HTTP, of one process; more are refused")
    idle_s: float = Field(
        default=15.0, gt=0, description="a connection's time to send a request's head; four times that for its body"
    )
    stall_s: float = Field(default=60.0, gt=0, description="how long a client may read nothing of its stream")
    request_timeout_s: float = Field(
        default=3600.0, gt=0, description="deadline of a request; it can only ask for less"
    )
    keep_alive_s: float = Field(default=10.0, gt=0, description="SSE comment after so long without an event")
    worker_wait_s: float = Field(default=2.0, ge=0, description="how long a request waits for a first rank")
    resume_wait_s: float = Field(
        default=3600.0, ge=0, description="how long a request whose rank is gone may wait for another"
    )
    drain_s: float = Field(default=5.0, ge=0, description="how long running requests may go on after SIGTERM")
    slo_first_answer_s: float = Field(
        default=60.0, gt=0, description="the service level: the answer's first token within so long, for 99 of 100"
    )
    policy: str = Field(default="thinking_aware", description="a shipped routing policy, or a .yaml file")
    tenants: Path | None = Field(default=None, description="tenants.yaml, read again when it changes")
    debug_routing: bool = Field(default=False, description="serve /debug/routing: recent picks and refusals, and why")
    announce: Path | None = Field(default=None, description="file that is told the ports once both listen")

    @property
    def body_s(self) -> float:
        """A request's time to send its body."""
        return 4 * self.idle_s


class WorkerSettings(LogSettings, TraceSettings):
    """How a rank finds its routers."""

    routers: str = Field(default="127.0.0.1:8001", description="host:port, comma separated; names are re-resolved")
    resolve_interval_s: float = Field(default=5.0, gt=0)
    vllm_metrics: bool = Field(
        default=False, description="export all of vLLM's own metrics through Ray, beside what the router exports"
    )
    max_gangs: int | None = Field(
        default=None, ge=1, description="autoscaling: from the plan's gangs up to so many of each pool; none: it is off"
    )
    drain_s: float = Field(
        default=5.0, ge=0, le=12, description="how long a leaving rank goes on before it hands over what still runs"
    )
    run_dir: Path | None = Field(
        default=None, description="folder through which `r1 leave` asks this node's ranks to go"
    )
    leave_s: float = Field(default=900.0, ge=0, description="how long running requests may go on after `r1 leave`")
    weights: str | None = Field(
        default=None, description="s3://, gs:// or az:// address that vLLM streams weights from"
    )
    load_format: str | None = Field(default=None, description="vLLM's loader; default: its own choice")


Kind = TypeVar("Kind", bound=BaseSettings)


def load(kind: type[Kind], **flags: object) -> Kind:
    """Read ``kind`` from the environment with ``flags`` on top (None: not given). Raises StartupError."""
    try:
        return kind(**{name: value for name, value in flags.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as e:
        faults = "; ".join(f"R1_{'_'.join(map(str, f['loc'])).upper()}: {f['msg']}" for f in e.errors())
        raise StartupError(f"bad setting: {faults}") from e


def models_folder() -> Path | None:
    """Where checkpoints named by a hub id lie: ``R1_MODELS``."""
    folder = os.environ.get("R1_MODELS")
    return Path(folder) if folder else None


def secret(name: str) -> str | None:
    """A credential that must not be on a command line: ``R1_API_KEY``, ``R1_FETCH_TOKEN``."""
    return os.environ.get(name) or None


def ray_address() -> str | None:
    """The Ray cluster that the shell points at, by Ray's own variable. Empty counts as not set."""
    return os.environ.get("RAY_ADDRESS") or None
