"""NVIDIA AIConfigurator's estimate of every run, for the comparison in ``r1_bench.perf.runs --peer``.

Runs in a virtual environment of its own, without this project: ``pip install aiconfigurator==0.12.0``, then
``python peer_aiconfigurator.py RUNS.csv OUT.json``. The row's layout and batch sizes, its newest database of the
backend, measured mode where it has the tables and hybrid where not, no speculation. Its defaults but for one setting
found after the fact: a BF16 KV cache for SGLang, which takes its TPOT error on those rows from 73 % to 8 %.
"""

from __future__ import annotations

import csv
import importlib
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

SPLIT = ("tp_size", "pp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size")
POOL = (*SPLIT, "batch_size", "num_workers")


def arguments(row: dict[str, str]) -> dict[str, Any]:
    """What the row says, in the peer's words."""
    common: dict[str, Any] = {
        "model_path": "deepseek-ai/DeepSeek-R1",
        "system_name": row["system"],
        "mode": row["mode"],
        "backend_name": row["backend"],
        "isl": int(row["isl"]),
        "osl": int(row["osl"]),
    }
    if row["backend"] == "sglang":
        common["kvcache_quant_mode"] = "bfloat16"
    if row["mode"] == "agg":
        return common | {name: int(float(row[name])) for name in (*SPLIT, "batch_size")}
    names = [f"{pool}_{name}" for pool in ("prefill", "decode") for name in POOL]
    return common | {name: int(float(row[name])) for name in names}


def main() -> None:
    estimate = importlib.import_module("aiconfigurator.cli.api").cli_estimate
    runs, out = sys.argv[1:]
    with Path(runs).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found: dict[str, Any] = {}
    for row in rows:
        for mode in ("SILICON", "HYBRID"):
            try:
                result = estimate(database_mode=mode, **arguments(row))
            except Exception as e:  # the peer raises many kinds; a row it cannot do is a result too
                found[row["id"]] = {"error": f"{type(e).__name__}: {str(e)[:200]}"}
                continue
            found[row["id"]] = {"ttft_ms": float(result.ttft), "tpot_ms": float(result.tpot), "mode": mode}
            break
    document = {"version": version("aiconfigurator"), "estimates": found}
    Path(out).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
