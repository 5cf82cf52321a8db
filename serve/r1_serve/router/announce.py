"""Tells whoever started this process where it listens."""

from __future__ import annotations

import json
import os
from pathlib import Path


def announce(path: Path, *, http_port: int, grpc_port: int) -> None:
    """Write the ports and the process id to ``path`` as JSON: whole or not at all."""
    text = json.dumps({"pid": os.getpid(), "http_port": http_port, "grpc_port": grpc_port})
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(path)
