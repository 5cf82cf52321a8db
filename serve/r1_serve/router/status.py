"""gRPC's rich status of an error: what ordinary clients and their retry policies read, ``RetryInfo`` above all."""

from __future__ import annotations

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from r1_serve.errors import R1Error

KEY = "grpc-status-details-bin"
DOMAIN = "r1-serve"


def status_details(error: R1Error) -> bytes:
    """A serialised ``google.rpc.Status`` with ErrorInfo, and RetryInfo and BadRequest where they apply."""
    details: list[Message] = [ErrorInfo(reason=error.reason, domain=DOMAIN)]
    if error.retry_after is not None:
        delay = Duration()
        delay.FromNanoseconds(round(error.retry_after * 1e9))
        details.append(RetryInfo(retry_delay=delay))
    if error.field:
        violation = BadRequest.FieldViolation(field=error.field, description=error.message)
        details.append(BadRequest(field_violations=[violation]))
    packed = []
    for detail in details:
        wrapped = Any()
        wrapped.Pack(detail)
        packed.append(wrapped)
    data: bytes = Status(code=error.grpc_status.value[0], message=error.message, details=packed).SerializeToString()
    return data
