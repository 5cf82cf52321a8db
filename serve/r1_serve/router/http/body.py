"""Reading a JSON body that nobody has checked yet."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from starlette.requests import Request

from r1_serve.errors import BodyTimeout, BodyTooLarge, InvalidRequest


async def read_json(request: Request, limit: int, timeout_s: float) -> Any:
    """The decoded body. Raises BodyTooLarge as soon as more than ``limit`` bytes are announced or have come,
    BodyTimeout where it is not all there after ``timeout_s``.

    The connection stays open and the server throws the rest away: closing it would reset it before clients that are
    still sending had read why.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise BodyTooLarge(_too_large(limit))
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise BodyTooLarge(_too_large(limit))
    except TimeoutError:
        raise BodyTimeout(f"the body did not come within {timeout_s:g} s: send it faster, or less") from None
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as e:
        try:
            body.decode()
        except UnicodeDecodeError as fault:
            raise InvalidRequest(f"the body is not valid UTF-8 (byte {fault.start})") from e
        raise InvalidRequest(f"the body is not valid JSON: {e}") from e


def _too_large(limit: int) -> str:
    return f"the body has more than {limit} bytes: shorten the messages"
