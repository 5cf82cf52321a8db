"""Tells whoever started this process where it listens."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def announce(path: Path, *, http_port: int, grpc_port: int, **more: list[int]) -> None:
    """Write the ports and the process id, and what ``more`` there is, to ``path`` as JSON: whole or not at all."""
    text = json.dumps({"pid": os.getpid(), "http_port": http_port, "grpc_port": grpc_port, **more})
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(path)


def read(path: Path) -> dict[str, Any]:
    """What was announced; empty before that."""
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return value
