"""Request ids: ours, or a client's own where it is harmless in logs and headers."""

from __future__ import annotations

import re
import uuid

HEADER = "x-request-id"
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def request_id(given: str | bytes | None) -> str:
    """``given`` if it is a short safe token, else a new one."""
    text = given.decode("latin-1") if isinstance(given, bytes) else given
    return text if text and _SAFE.fullmatch(text) else uuid.uuid4().hex
