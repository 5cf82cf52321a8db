"""Every refusal a client or operator can meet: one tree, a named reason each, mapped to HTTP and gRPC here only."""

from __future__ import annotations

from typing import ClassVar

import grpc


class R1Error(Exception):
    """Base of all named refusals.

    ``reason`` is stable and machine-readable, ``message`` one line that says what to do next, ``field`` the request
    field at fault, ``retry_after`` seconds after which the same request may succeed.
    """

    reason: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    grpc_status: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    openai_type: ClassVar[str] = "server_error"

    def __init__(self, message: str, *, field: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after = retry_after


class InvalidRequest(R1Error):
    reason = "invalid_request"
    http_status = 400
    grpc_status = grpc.StatusCode.INVALID_ARGUMENT
    openai_type = "invalid_request_error"


class ContextLengthExceeded(InvalidRequest):
    reason = "context_length_exceeded"


class EngineRejected(InvalidRequest):
    """The engine refused the request itself; every rank would."""

    reason = "engine_rejected"


class BodyTooLarge(InvalidRequest):
    reason = "body_too_large"
    http_status = 413


class UnknownModel(InvalidRequest):
    reason = "model_not_found"
    http_status = 404
    grpc_status = grpc.StatusCode.NOT_FOUND


class NotFound(InvalidRequest):
    reason = "not_found"
    http_status = 404
    grpc_status = grpc.StatusCode.NOT_FOUND


class MethodNotAllowed(InvalidRequest):
    reason = "method_not_allowed"
    http_status = 405
    grpc_status = grpc.StatusCode.UNIMPLEMENTED


class FleetSaturated(R1Error):
    """As many requests wait for the model as may."""

    reason = "fleet_saturated"
    http_status = 429
    grpc_status = grpc.StatusCode.RESOURCE_EXHAUSTED
    openai_type = "rate_limit_error"


class TenantQuota(R1Error):
    """The tenant's own limit, however free the fleet is."""

    reason = "tenant_quota"
    http_status = 429
    grpc_status = grpc.StatusCode.RESOURCE_EXHAUSTED
    openai_type = "rate_limit_error"


class DeadlineUnreachable(R1Error):
    """It would not be done in time: said before any work is wasted on it."""

    reason = "deadline_unreachable"
    http_status = 503
    grpc_status = grpc.StatusCode.UNAVAILABLE


class TooLongForPlan(InvalidRequest):
    """No rank's cache could hold it."""

    reason = "too_long_for_plan"


class UnknownKey(R1Error):
    """The API key belongs to no tenant."""

    reason = "unknown_key"
    http_status = 401
    grpc_status = grpc.StatusCode.UNAUTHENTICATED
    openai_type = "authentication_error"


class NoWorkers(R1Error):
    """No rank that serves the model is attached and ready."""

    reason = "no_workers"
    http_status = 503
    grpc_status = grpc.StatusCode.UNAVAILABLE


class WorkerLost(R1Error):
    """The rank died while it held the request."""

    reason = "worker_lost"
    http_status = 503
    grpc_status = grpc.StatusCode.UNAVAILABLE


class PoisonRequest(R1Error):
    """Workers died with this request, one after the other: trying it again would cost another."""

    reason = "poison_request"


class RouterStopping(R1Error):
    reason = "router_stopping"
    http_status = 503
    grpc_status = grpc.StatusCode.UNAVAILABLE


class DeadlineExceeded(R1Error):
    reason = "deadline_exceeded"
    http_status = 504
    grpc_status = grpc.StatusCode.DEADLINE_EXCEEDED


class ClientStalled(R1Error):
    """The client reads nothing: its stream is ended and its request with it."""

    reason = "client_stalled"
    http_status = 408
    grpc_status = grpc.StatusCode.CANCELLED


class BodyTimeout(InvalidRequest):
    """The client does not send what it announced."""

    reason = "body_timeout"
    http_status = 408
    grpc_status = grpc.StatusCode.DEADLINE_EXCEEDED


class TooManyConnections(R1Error):
    reason = "too_many_connections"
    http_status = 503
    grpc_status = grpc.StatusCode.UNAVAILABLE


class Cancelled(R1Error):
    """The client went away; nobody reads this but the log and the metrics."""

    reason = "cancelled"
    http_status = 499
    grpc_status = grpc.StatusCode.CANCELLED


class InternalError(R1Error):
    """A fault of ours. The message carries the request id and nothing else; the log has the rest."""


class AttachRefused(R1Error):
    """A worker that cannot join this router."""

    reason = "attach_refused"
    http_status = 400
    grpc_status = grpc.StatusCode.FAILED_PRECONDITION


class AlreadyAttached(AttachRefused):
    reason = "already_attached"
    grpc_status = grpc.StatusCode.ALREADY_EXISTS


class FleetTokenWrong(AttachRefused):
    """A caller that does not belong to the fleet: it would be given prompts."""

    reason = "fleet_token_wrong"
    http_status = 401
    grpc_status = grpc.StatusCode.UNAUTHENTICATED
    openai_type = "authentication_error"


class BadFrame(AttachRefused):
    """A worker that breaks the fleet protocol."""

    reason = "bad_frame"
    grpc_status = grpc.StatusCode.INVALID_ARGUMENT


class StartupError(R1Error):
    """This machine or this configuration cannot run what was asked: shown as one line by the command."""

    reason = "startup"
