"""Fit the operators' shares of peak on measured kernel tables: ``python -m r1_bench.perf.operators --tables DIR``.

Writes benchmarks/results/perf_operators_<hardware>_<date>: the shares, and how far the fitted operators are from the
tables. The shares then stand in r1_cluster/perf/constants.json, copied by hand, with reasons where they differ.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from r1_cluster.catalog import Experts, gpu, model
from r1_cluster.perf.batch import Batch
from r1_cluster.perf.constants import Attention, ExpertKernel, Gemm, fitted
from r1_cluster.perf.layout import Split
from r1_cluster.perf.operators import gemm, latent_decode, routed_experts
from r1_cluster.perf.step import Engine

from r1_bench import results
from r1_bench.perf.least_squares import Vector, fit

Row = dict[str, str]


@dataclass(frozen=True)
class Fit:
    """Shares found by name, and the absolute relative errors they leave."""

    operator: str
    shares: dict[str, float]
    rows: int
    mape: float
    median: float


def search(
    operator: str,
    measured: Sequence[float],
    predict: Callable[[Vector], Sequence[float]],
    bounds: dict[str, tuple[float, float, float]],
) -> Fit:
    """``bounds``: start, low, high by name."""
    target = np.log(np.array(measured))

    def residuals(x: Vector) -> Vector:
        return np.asarray(np.log(np.array(predict(x))) - target)

    start, low, high = zip(*bounds.values(), strict=True)
    found = fit(residuals, start, low, high, scale=0.15)
    errors = np.abs(np.expm1(residuals(found)))
    shares = {name: float(f"{value:.3g}") for name, value in zip(bounds, found, strict=True)}
    return Fit(operator, shares, len(errors), float(errors.mean()), float(np.median(errors)))


def fit_gemm(rows: list[Row], dtype: str, *, slower_than: float = 0.0) -> Fit:
    rows = [row for row in rows if row["gemm_dtype"] == dtype and float(row["latency"]) / 1e3 > slower_than]

    def predict(x: Vector) -> list[float]:
        shares = Gemm(compute=x[0], bandwidth=x[1], fixed=x[2])
        return [gemm(gpu(row["system"]), shares, int(row["m"]), int(row["n"]), int(row["k"]), dtype) for row in rows]

    memory = (0.8, 0.4, 1.0) if dtype == "bfloat16" else (0.84, 0.83, 0.85)
    bounds = {"compute": (0.7, 0.2, 1.0), "bandwidth": memory, "fixed": (4e-6, 1e-6, 4e-5)}
    return search(f"gemm {dtype}", [float(row["latency"]) / 1e3 for row in rows], predict, bounds)


def fit_decode(rows: list[Row], kv_dtype: str, pad: int) -> Fit:
    """Growth of one layer's time over context from 2 tokens: the core alone, whatever was launched around it."""
    rows = [
        row
        for row in rows
        if row["phase"] == "generation" and row["kv_cache_dtype"] == kv_dtype and row["gemm_type"] == "fp8_block"
    ]

    def key(row: Row) -> tuple[str, str, str]:
        return row["system"], row["num_heads"], row["batch_size"]

    base = {key(row): float(row["latency_ms"]) / 1e3 for row in rows if row["step"] == "2"}
    grown = [(row, float(row["latency_ms"]) / 1e3 - base[key(row)]) for row in rows if int(row["step"]) >= 2048]
    grown = [(row, growth) for row, growth in grown if growth > 6e-5]

    def predict(x: Vector) -> list[float]:
        shares = Attention(decode_bandwidth=x[0], prefill_compute=1, prefill_passes=0, fixed=0)
        return [
            latent_decode(
                gpu(row["system"]),
                shares,
                int(row["batch_size"]) * int(row["step"]),
                max(int(row["num_heads"]), pad),
                "fp8" if kv_dtype == "fp8" else "bfloat16",
                compute=x[1],
            )
            for row, _ in grown
        ]

    bounds = {"decode_bandwidth": (0.9, 0.3, 1.0), "decode_compute": (0.8, 0.3, 1.0)}
    return search(f"MLA decode, {kv_dtype} KV, heads padded to {pad}", [g for _, g in grown], predict, bounds)


def fit_prefill(rows: list[Row]) -> Fit:
    rows = [
        row
        for row in rows
        if (row["phase"], row["kernel_source"], row["gemm_type"]) == ("context", "FLASH_ATTN", "fp8_block")
        and int(row["isl"]) * int(row["batch_size"]) >= 512
    ][::3]
    r1, constants = model("deepseek-r1"), fitted()

    def predict(x: Vector) -> list[float]:
        shares = constants.attention.model_copy(update={"prefill_compute": x[0], "prefill_passes": x[1]})
        fp8 = constants.gemm["fp8_block"].model_copy(update={"compute": x[2]})
        tried = constants.model_copy(update={"attention": shares, "gemm": constants.gemm | {"fp8_block": fp8}})
        times = []
        for row in rows:
            ranks = r1.heads // int(row["num_heads"])
            split = Split(tensor=ranks, expert_tensor=ranks)
            engine = Engine.of(r1, gpu(row["system"]), split, "vllm", constants=tried)
            prompts = Batch.prompts(int(row["isl"]), count=int(row["batch_size"]))
            times.append(engine.attention_layer(prompts) + x[3])
        return times

    bounds = {
        "prefill_compute": (0.7, 0.3, 1.0),
        "prefill_passes": (8.0, 1.0, 20.0),
        "gemm_compute": (0.5, 0.2, 1.0),
        "launch": (5e-5, 1e-6, 2e-4),
    }
    return search("MLA prefill", [float(row["latency_ms"]) / 1e3 for row in rows], predict, bounds)


def fit_experts(rows: list[Row], name: str, latency: str) -> Fit:
    """All rows of one kernel and routing skew; expert ranks up to 64."""
    rows = [row for row in rows if int(row["moe_ep_size"]) <= 64]
    r1 = model("deepseek-r1")
    shape = cast(Experts, r1.experts)

    def predict(x: Vector) -> list[float]:
        kernel = ExpertKernel(compute=x[0], bandwidth=x[1], fixed=x[2], tile=x[3], shard=x[4])
        return [
            routed_experts(
                gpu(row["system"]),
                kernel,
                shape,
                r1.hidden_size,
                r1.expert_bytes,
                float(row["num_tokens"]),
                tensor=int(row["moe_tp_size"]),
                ranks=int(row["moe_ep_size"]),
                skew=float(x[5]),
                hot=x[6],
                dtype="fp8_block",
            )
            for row in rows
        ]

    bounds = {
        "compute": (0.4, 0.05, 0.9),
        "bandwidth": (0.85, 0.3, 0.98),
        "fixed": (3e-5, 1e-6, 2e-4),
        "tile": (64.0, 8.0, 128.0),
        "shard": (0.3, 0.01, 1.0),
        "skew": (0.6, 0.01, 1.5),
        "hot": (0.15, 0.001, 0.6),
    }
    return search(f"experts, {name}", [float(row[latency]) / 1e3 for row in rows], predict, bounds)


def load(folder: Path, name: str) -> list[Row]:
    with (folder / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def fit_all(folder: Path) -> list[Fit]:
    dense, mla = load(folder, "gemm.csv"), load(folder, "r1_mla_layer.csv")
    moe, wide = load(folder, "r1_moe_layer.csv"), load(folder, "r1_moe_wide_ep.csv")
    # FP8 rows below 110 us are the eager launch of two kernels, not the product: they say nothing of bandwidth.
    fits = [fit_gemm(dense, "bfloat16"), fit_gemm(dense, "fp8_block", slower_than=1.1e-4)]
    fits += [fit_decode(mla, dtype, pad) for dtype in ("bfloat16", "fp8") for pad in (16, 64)]
    fits.append(fit_prefill(mla))
    for skew in ("power_law_1.01", "power_law_1.2"):
        some = [row for row in moe if row["distribution"] == skew]
        vllm = [row for row in some if row["framework"] == "VLLM"]
        triton = [row for row in vllm if "triton" in row["kernel_source"]]
        fits.append(fit_experts(triton, f"Triton (vLLM), {skew}", "latency_ms"))
        flashinfer = [row for row in vllm if "cutlass" in row["kernel_source"]]
        fits.append(fit_experts(flashinfer, f"CUTLASS (vLLM, FlashInfer), {skew}", "latency_ms"))
        trtllm = [row for row in some if row["framework"] == "TRTLLM"]
        fits.append(fit_experts(trtllm, f"CUTLASS (TensorRT-LLM), {skew}", "latency_ms"))
    for skew in ("uniform", "power_law_0.6"):
        some = [row for row in wide if row["distribution"] == skew and row["phase"] == "generation"]
        some += [row for row in wide if row["distribution"] == skew and int(row["num_tokens"]) > 16384]
        fits.append(fit_experts(some, f"DeepGEMM (SGLang, DeepEP), {skew}", "latency"))
    return fits


def table(fits: list[Fit], environment: dict[str, object]) -> str:
    lines = ["# Operators against the kernel tables", "", f"`{environment['command']}`, {environment['date']}", ""]
    lines += ["| operator | rows | mean error | median | fitted |", "|---|---|---|---|---|"]
    for each in fits:
        shares = ", ".join(f"{name} {value:g}" for name, value in each.shares.items())
        lines.append(f"| {each.operator} | {each.rows} | {each.mape:.1%} | {each.median:.1%} | {shares} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=Path, required=True, help="folder with gemm.csv, r1_mla_layer.csv, …")
    fits = fit_all(parser.parse_args().tables)
    environment = results.environment()
    found = {"environment": environment, "operators": [vars(each) for each in fits]}
    print(results.write("perf_operators_hopper", found, table(fits, environment)).read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
