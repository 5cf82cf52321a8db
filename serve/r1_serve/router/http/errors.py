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
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after))
    return Response(orjson.dumps(error_body(error)), error.http_status, headers=headers, media_type="application/json")
