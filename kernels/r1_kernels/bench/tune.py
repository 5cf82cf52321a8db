"""`python -m r1_kernels.bench.tune`: time tile choices on this GPU and write fused_moe/tuned/<gpu>.json.

Candidates vary the reasoned choice one GEMM at a time; each must agree with it before it is timed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import product

import torch
from triton.errors import TritonError

from r1_kernels.aot.cases import LAYOUTS
from r1_kernels.bench.__main__ import TOKENS
from r1_kernels.bench.timing import microseconds
from r1_kernels.bench.workload import experts_of, inputs
from r1_kernels.cases import Case, DisagreesError, agree
from r1_kernels.fused_moe.op import gpu_of
from r1_kernels.fused_moe.tiles import TUNED, MoeTiles, choose


def candidates(start: MoeTiles) -> Iterator[MoeTiles]:
    """Other choices in the regime of `start`: warps, stages and splits of either GEMM, and rows a block when sorted."""
    few = start.regime == "few"
    for warps, stages, splits in product((4, 8), (2, 3, 4, 5, 8), (1, 2, 4, 8) if few else (1,)):
        yield replace(start, gate_up=replace(start.gate_up, num_warps=warps, num_stages=stages, splits=splits))
        yield replace(start, down=replace(start.down, num_warps=warps, num_stages=stages, splits=splits))
    if few:
        return
    for rows, programs in product((16, 32, 64, 128), (1, 2, 3)):
        swap, warps = rows < 64, 4 if rows == 16 else 8
        up = replace(start.gate_up, block_m=rows, swap=swap, num_warps=warps)
        down = replace(start.down, block_m=rows, swap=swap, num_warps=warps)
        yield MoeTiles("middle" if swap else "many", up, down, programs)


def timed(case: Case, tiles: MoeTiles, expected: torch.Tensor, out: torch.Tensor) -> float:
    """µs of one choice; infinity where it does not launch (too much shared memory) or is wrong."""
    try:
        agree(case.run(tiles), expected)
        return microseconds([lambda: case.into(out, tiles, check_ids=False)], rounds=4, repeats=3)
    except (DisagreesError, TritonError, RuntimeError, ValueError) as error:
        print(f"left out: {tiles}: {str(error).splitlines()[0]}", file=sys.stderr)
        return float("inf")


def main() -> int:
    """Run; the process's exit code."""
    parser = argparse.ArgumentParser(prog="r1_kernels.bench.tune", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: no CUDA GPU here; tiles are tuned on the GPU they are for", file=sys.stderr)
        return 2
    device = torch.device("cuda")
    gpu = gpu_of(device)
    path = TUNED / f"{gpu.name.replace(' ', '_')}.json"
    table = json.loads(path.read_text()) if path.is_file() else {}
    for layout in args.layouts:
        experts = experts_of(layout, device)
        for tokens in args.tokens:
            case = inputs(experts, tokens, 0).case
            shape = experts.shape(tokens, 8)
            start = choose(shape, replace(gpu, name="untuned"))
            expected, out = case.run(start).float(), torch.empty_like(case.run(start))
            best = min((start, *candidates(start)), key=lambda tiles: timed(case, tiles, expected, out))
            table.setdefault(shape.key, {})[str(tokens)] = asdict(best)
            TUNED.mkdir(exist_ok=True)
            path.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
            print(layout, tokens, best, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
