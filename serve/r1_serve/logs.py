"""Logs of every part, as text or as one JSON object a line. Request ids go in, what clients and models say never does.

Two rules keep content out: a record carries values only under the names of ``FIELDS``, and of an exception only its
type and where it was raised, for its text may quote a request. The one exception is our own R1Error, whose message
names fields and numbers.
"""

from __future__ import annotations

import logging
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import orjson

from r1_serve.errors import R1Error
from r1_serve.settings import LogSettings

# What ``extra={...}`` may say. All of it is ours: ids, counts, names out of plans and the tenants file.
FIELDS = (
    "request_id",
    "trace_id",
    "model",
    "tenant",
    "outcome",
    "worker_id",
    "gang_id",
    "rank",
    "prompt_tokens",
    "reasoning_tokens",
    "answer_tokens",
    "seconds",
)

OURS = "r1_serve"
# Chatty, or given to quoting what they were sent.
_OTHERS = {"uvicorn": logging.WARNING, "httpx": logging.WARNING, "asyncio": logging.WARNING, "grpc": logging.WARNING}


def configure(settings: LogSettings, stream: IO[str] | None = None) -> None:
    """Send this process's log to ``stream``, by default stderr. Replaces what was configured before."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.getLogger(OURS).setLevel(settings.log_level.upper())
    for name, level in _OTHERS.items():
        logging.getLogger(name).setLevel(level)
    logging.captureWarnings(True)


class JsonFormatter(logging.Formatter):
    """``{"time", "level", "logger", "message", ...FIELDS, "error": {"type", "where", "message"?}}``."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **fields(record),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = _error(record.exc_info[1])
        return orjson.dumps(line, default=str).decode()


class TextFormatter(logging.Formatter):
    """The same on one line for a terminal: time, level, logger, message, error."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record)} {record.levelname:7} {record.name}: {record.getMessage()}"
        if record.exc_info and record.exc_info[1] is not None:
            error = _error(record.exc_info[1])
            line += f" | {error['type']}: {error.get('message', '(text withheld)')} at {' < '.join(error['where'])}"
        return line


def fields(record: logging.LogRecord) -> dict[str, Any]:
    """What the record says beside its message, under permitted names only."""
    return {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _error(error: BaseException) -> dict[str, Any]:
    """``where``: innermost frame first."""
    frames = traceback.extract_tb(error.__traceback__)
    told: dict[str, Any] = {
        "type": f"{type(error).__module__}.{type(error).__qualname__}",
        "where": [f"{_short(frame.filename)}:{frame.lineno} {frame.name}" for frame in reversed(frames)],
    }
    if isinstance(error, R1Error):
        told["message"] = error.message
    if error.__cause__ is not None:
        told["cause"] = _error(error.__cause__)
    return told


def _short(filename: str) -> str:
    return "/".join(Path(filename).parts[-3:])
