"""Recorded traffic, one record at a time. A malformed line is one error with its number; nothing is guessed.

Mooncake JSONL (``timestamp`` ms, ``input_length``, ``output_length``, ``hash_ids``), Azure CSV (``TIMESTAMP``,
``ContextTokens``, ``GeneratedTokens``), and the router's JSON log or plain JSONL (``prompt_tokens``,
``reasoning_tokens``, ``answer_tokens``, and a time: ``at`` seconds, or ``time`` with the ``seconds`` it took).
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from r1_cluster.workload.spec import WorkloadError

BLOCK = 512  # tokens of a Mooncake hash id


@dataclass(frozen=True, slots=True)
class Record:
    """One request. ``at``: seconds, from whenever the trace counts. ``thinking_tokens``: None where only the output as
    a whole (``answer_tokens``) is known. ``finished``: it was not cut off. ``blocks``: prefix ids, ``BLOCK`` tokens
    each."""

    at: float
    prompt_tokens: int
    answer_tokens: int
    thinking_tokens: int | None = None
    tenant: str = ""
    finished: bool = True
    blocks: tuple[int, ...] = ()


class _Fault(ValueError):
    """What is wrong with a line."""


def read(path: Path) -> Iterator[Record]:
    """The records of a file, by its ending and fields. Raises WorkloadError with the line's number."""
    number = 0
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            if path.suffix == ".csv":
                rows = csv.DictReader(lines)
                missing = {"TIMESTAMP", "ContextTokens", "GeneratedTokens"} - set(rows.fieldnames or ())
                number = 1
                if missing:
                    raise _Fault(f"no column {', '.join(sorted(missing))}")
                for row in rows:
                    number = rows.line_num
                    yield _azure(row)
                return
            for line in lines:
                number += 1
                record = _json(line) if line.strip() else None
                if record is not None:
                    yield record
    except _Fault as e:
        raise WorkloadError(f"{path}, line {number}: {e}") from e
    except csv.Error as e:
        raise WorkloadError(f"{path}, line {number}: not CSV: {e}") from e
    except (OSError, UnicodeDecodeError) as e:
        raise WorkloadError(f"trace {path}: {getattr(e, 'strerror', None) or f'not UTF-8 after line {number}'}") from e


def _azure(row: dict[str | None, Any]) -> Record:
    return Record(_clock(row["TIMESTAMP"], "TIMESTAMP"), _csv(row, "ContextTokens", 1), _csv(row, "GeneratedTokens"))


def _json(line: str) -> Record | None:
    """None for a line of a log that is not about a request that ended."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as e:
        raise _Fault(f"not JSON: {e.msg} at column {e.colno}") from e
    if not isinstance(value, dict):
        raise _Fault(f"expected a JSON object, got {type(value).__name__}")
    if "input_length" in value or "output_length" in value:
        return _mooncake(value)
    if "prompt_tokens" not in value:
        if "message" in value:
            return None  # another line of the router's log
        raise _Fault("not a request: expected input_length or prompt_tokens among its fields")
    return _ours(value)


def _mooncake(value: dict[str, Any]) -> Record:
    blocks = value.get("hash_ids", [])
    if not isinstance(blocks, list) or not all(type(b) is int for b in blocks):
        raise _Fault("hash_ids: expected a list of integers")
    at = _number(value, "timestamp") / 1e3
    return Record(at, _whole(value, "input_length", 1), _whole(value, "output_length"), blocks=tuple(blocks))


def _ours(value: dict[str, Any]) -> Record:
    if "at" in value:
        at = _number(value, "at")
    else:  # logged at its end
        at = _clock(value.get("time"), "time") - (_number(value, "seconds") if "seconds" in value else 0.0)
    tenant = value.get("tenant", "")
    if not isinstance(tenant, str):
        raise _Fault("tenant: expected text")
    return Record(
        at,
        _whole(value, "prompt_tokens", 1),
        _whole(value, "answer_tokens"),
        _whole(value, "reasoning_tokens"),
        tenant,
        value.get("outcome", "ok") == "ok",
    )


def _number(value: dict[str, Any], name: str) -> float:
    got = value.get(name)
    if isinstance(got, bool) or not isinstance(got, int | float) or not math.isfinite(got) or got < 0:
        raise _Fault(f"{name}: expected a number from 0, got {got!r}")
    return float(got)


def _whole(value: dict[str, Any], name: str, least: int = 0) -> int:
    got = value.get(name)
    if type(got) is not int or got < least:
        raise _Fault(f"{name}: expected an integer from {least}, got {got!r}")
    return got


def _csv(row: dict[str | None, Any], name: str, least: int = 0) -> int:
    return _parsed(row[name], name, int, least)


def _parsed(text: Any, name: str, kind: Callable[[str], int], least: int) -> int:
    try:
        got = kind(text)
    except (TypeError, ValueError):
        got = least - 1
    if got < least:
        raise _Fault(f"{name}: expected an integer from {least}, got {text!r}")
    return got


def _clock(text: Any, name: str) -> float:
    try:
        # Azure writes seven digits of a second, Python reads six.
        head, dot, fraction = str(text).partition(".")
        digits = fraction.rstrip("Zz")
        zone = "+00:00" if fraction[len(digits) :] or "+" not in fraction else ""
        if "+" in digits:
            digits, _, offset = digits.partition("+")
            zone = f"+{offset}"
        whole = head.rstrip("Zz") + (dot + digits[:6] if digits else "")
        return datetime.fromisoformat(whole + zone).timestamp()
    except ValueError:
        raise _Fault(f"{name}: expected a date and time, got {text!r}") from None
