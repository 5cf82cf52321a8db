"""Errors in OpenAI's shape, over HTTP."""

from __future__ import annotations

import math
from typing import Any

import orjson
from starlette.responses import Response

from r1_serve.errors import R1Error


def error_body(error: R1Error) -> dict[str, Any]:
    return {
        "error": {
            "message": error.message,
            "type": error.openai_type,
            "param": error.field,
            "code": error.reason,
        }
    }


def error_response(error: R1Error) -> Response:
    return refusal(error_body(error), error)


def refusal(body: Any, error: R1Error) -> Response:
    """``body`` with the status and headers of ``error``."""
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after))
    return Response(orjson.dumps(body), error.http_status, headers=headers, media_type="application/json")
