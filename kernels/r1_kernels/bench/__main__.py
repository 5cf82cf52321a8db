"""`make bench-kernels`: check the fused MoE kernels against the reference in float64, then time them on this GPU.

Beside vLLM's Triton experts where vLLM's GPU build is installed, the same passes in plain Triton, and the floor: the
bytes a call must touch over the bandwidth measured here. All sides start from BF16 tokens and chosen experts; routing
is timed on its own. `--write FOLDER` leaves kernels_<gpu>_<date>.{json,md} there. The last line is one JSON object.
Exit code 2 without a GPU, 1 where a result is wrong.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton

from r1_kernels.aot.cases import LAYOUTS, R1_EXPERTS
from r1_kernels.bench.plain.op import plain_moe
from r1_kernels.bench.timing import bandwidth, microseconds
from r1_kernels.bench.workload import Inputs, bytes_touched, experts_of, inputs
from r1_kernels.cases import DisagreesError, agree
from r1_kernels.fused_moe.op import fused_moe, gpu_of
from r1_kernels.fused_moe.tiles import choose
from r1_kernels.quant.op import quantise
from r1_kernels.routing.op import route
from r1_kernels.vllm import baseline

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
CHECKED = (1, 8, 32, 64, 256)
ROTATING = 3


def ours(given: Inputs, out: torch.Tensor) -> None:
    """Our whole path from BF16 tokens."""
    case = given.case
    x, scale = quantise(given.x)
    fused_moe(x, case.experts, case.weights, case.ids, x_scale=scale, out=out, check_ids=False)


def measure(layout: str, tokens: int, experts: Any, theirs: Any, bytes_per_second: float) -> dict[str, Any]:
    """One row. Raises: DisagreesError where a result is beyond the bounds, before it is timed."""
    sets = [inputs(experts, tokens, seed) for seed in range(ROTATING)]
    row: dict[str, Any] = {"layout": layout, "tokens": tokens}
    if tokens in CHECKED:
        row["max_error"], row["rms_error"] = agree(sets[0].case.run(), sets[0].case.expected(torch.float64))
    out = torch.empty_like(sets[0].x)
    row["our_us"] = round(microseconds([partial(ours, given, out) for given in sets]), 1)
    row["vllm_us"] = None
    if theirs is not None:
        calls = [partial(theirs, given.x, given.case.weights, given.case.ids) for given in sets]
        row["vllm_us"] = round(microseconds(calls), 1)
    calls = [partial(plain_moe, given.x, experts, given.case.weights, given.case.ids) for given in sets]
    row["plain_us"] = round(microseconds(calls), 1)
    row["floor_us"] = round(sum(bytes_touched(s.case) for s in sets) / len(sets) / bytes_per_second * 1e6, 1)
    choice = choose(experts.shape(tokens, 8), gpu_of(out.device))
    row["tiles"] = f"{choice.regime} {choice.gate_up.block_m}, splits {choice.gate_up.splits}/{choice.down.splits}"
    return row | {"source": choice.source}


def routing_times() -> dict[str, float]:
    """Routing and, up to 64 tokens, offsets: µs by tokens."""
    found = {}
    for tokens in (1, 16, 64, 1024):
        logits = torch.randn(tokens, R1_EXPERTS, device="cuda")
        bias = torch.randn(R1_EXPERTS, device="cuda") * 0.1
        call = partial(route, logits, bias, groups=8, top_groups=4, topk=8, scale=2.5)
        found[str(tokens)] = round(microseconds([call]), 2)
    return found


def markdown(result: dict[str, Any]) -> str:
    """The result as a table, losses included."""
    lines = [f"# Fused MoE on {result['gpu']}", "", f"`{result['command']}`, {result['date']}", ""]
    lines += [f"{name}: {result[name]}" for name in ("triton", "torch", "vllm", "bandwidth_TBps", "routing_us")]
    columns = ("layout", "tokens", "ours µs", "vLLM µs", "plain µs", "floor µs", "speed-up", "over floor", "tiles")
    lines += ["", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in result["rows"]:
        gain = f"{row['vllm_us'] / row['our_us']:.2f}" if row["vllm_us"] else "–"
        over = f"{row['our_us'] / row['floor_us']:.2f}" if row["floor_us"] else "–"
        theirs = row["vllm_us"] or "–"
        cells = (
            row["layout"],
            row["tokens"],
            row["our_us"],
            theirs,
            row["plain_us"],
            row["floor_us"],
            gain,
            over,
            row["tiles"],
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Run; the process's exit code."""
    parser = argparse.ArgumentParser(prog="r1_kernels.bench", description="Check and time the fused MoE kernels.")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="leave the result there, as JSON and Markdown")
    parser.add_argument("--minutes", type=float, default=9.0, help="start no further row after this (default 9)")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("error: no CUDA GPU here; run this on one (`make test-interpret` needs none)", file=sys.stderr)
        return 2
    until = time.monotonic() + 60 * args.minutes
    speed = bandwidth()
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    for layout in args.layouts:
        experts = experts_of(layout, torch.device("cuda"))
        theirs = baseline.prepare(experts) if baseline.available() else None
        for tokens in args.tokens:
            if time.monotonic() > until:
                left_out.append(f"{layout} {tokens}")
                continue
            try:
                rows.append(measure(layout, tokens, experts, theirs, speed))
            except DisagreesError as error:
                print(f"error: {layout}, {tokens} tokens: {error}", file=sys.stderr)
                return 1
            print(json.dumps(rows[-1]), flush=True)
        del experts, theirs
        torch.cuda.empty_cache()
    gpu = torch.cuda.get_device_name()
    result = {
        "gpu": gpu, "date": datetime.date.today().isoformat(),
        "command": " ".join(["python -m r1_kernels.bench", *sys.argv[1:]]),
        "triton": triton.__version__, "torch": torch.__version__, "cuda": torch.version.cuda,
        "python": platform.python_version(), "vllm": baseline.available(), "bandwidth_TBps": round(speed / 1e12, 3),
        "routing_us": routing_times(), "rows": rows, "left_out": left_out,
    }  # fmt: skip
    if args.write:
        name = f"kernels_{gpu.lower().replace('nvidia ', '').replace(' ', '-')}_{result['date']}"
        (args.write / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        (args.write / f"{name}.md").write_text(markdown(result))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
