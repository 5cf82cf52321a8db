"""Measures an exported r1-nano on held-out problems and writes its card's numbers.

`python -m r1_serve.nano.evaluate --per-task 100 --card benchmarks/results/nano_card_cpu` writes .json and .md.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from r1_serve.nano import weights_path
from r1_serve.nano.data import prompt_text
from r1_serve.nano.decode import generate
from r1_serve.nano.export import load
from r1_serve.nano.tasks import TASKS, Problem, check, held_out
from r1_serve.nano.tokenizer import EOS, THINK_END, special_id

TEMPERATURE, TOP_P = 0.6, 0.95
MAX_NEW = 900


def percentile(values: list[int], share: float) -> int:
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else 0


def answers(
    folder: Path, problems: list[Problem], max_new: int, system: str = "", batch: int = 100, **sampling: float
) -> list[list[int]]:
    """The token ids written for each problem, at most ``max_new``, in order."""
    model, tokenizer = load(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    eos = special_id(tokenizer, EOS)
    # Like lengths together, so that a batch ends about when its members do.
    order = sorted(range(len(problems)), key=lambda i: len(problems[i].thinking))
    written: list[list[int]] = [[] for _ in problems]
    for start in range(0, len(order), batch):
        chunk = order[start : start + batch]
        prompts = [tokenizer.encode(prompt_text(problems[i].question, system)).ids for i in chunk]
        found = generate(model, prompts, eos=eos, max_new=max_new, seed=start, **sampling)
        for i, ids in zip(chunk, found, strict=True):
            written[i] = ids
    return written


def score(folder: Path, problems: list[Problem], written: list[list[int]]) -> dict[str, Any]:
    """Accuracy, thinking lengths in tokens and the share that never closed its thought, by task and overall."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    think_end = special_id(tokenizer, THINK_END)
    rows: dict[str, list[tuple[bool, int, bool]]] = defaultdict(list)
    for problem, ids in zip(problems, written, strict=True):
        closed = think_end in ids
        right = closed and check(problem, tokenizer.decode(ids, skip_special_tokens=True))
        rows[problem.task].append((right, ids.index(think_end) if closed else len(ids), not closed))
    rows["all"] = [row for task in list(rows) for row in rows[task]]
    shares = (0.1, 0.5, 0.9, 0.99)
    return {
        task: {
            "n": len(found),
            "accuracy": round(sum(r for r, _, _ in found) / len(found), 4),
            "thinking_tokens": {f"p{int(q * 100)}": percentile([t for _, t, _ in found], q) for q in shares},
            "unterminated": sum(u for _, _, u in found),
        }
        for task, found in rows.items()
    }


def card(folder: Path, per_task: int, seed: int, samples: int, max_new: int) -> dict[str, Any]:
    problems = held_out(per_task * len(TASKS), seed)
    greedy = score(folder, problems, answers(folder, problems, max_new))
    drawn = problems * samples
    sampled = score(folder, drawn, answers(folder, drawn, max_new, temperature=TEMPERATURE, top_p=TOP_P))
    system = score(folder, problems, answers(folder, problems, max_new, system="You are a helpful assistant."))
    return {
        "model": "r1-nano",
        "problems": f"held_out({per_task * len(TASKS)}, seed={seed})",
        "sampling": {"temperature": TEMPERATURE, "top_p": TOP_P, "samples_per_problem": samples},
        "precision": "bfloat16 weights computed in float32",
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        "hardware": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "command": "python -m r1_serve.nano.evaluate " + " ".join(sys.argv[1:]),
        "greedy": greedy,
        "pass_at_1": sampled,
        "greedy_with_system_prompt": system["all"],
    }


def table(result: dict[str, Any]) -> str:
    samples = result["sampling"]["samples_per_problem"]
    lines = [
        f"# r1-nano on held-out problems\n\n`{result['command']}`\n",
        f"{result['problems']}; {result['precision']}; {result['hardware']}; versions {result['versions']}.",
        f"pass@1 over {samples} samples a problem, temperature {TEMPERATURE}, top-p {TOP_P}.",
        f"Greedy with a system prompt: {result['greedy_with_system_prompt']['accuracy']:.1%}.\n",
        "| task | n | greedy | pass@1 | thinking tokens p10 / p50 / p90 / p99 | unterminated (greedy, sampled) |",
        "|---|---|---|---|---|---|",
    ]
    for task, g in result["greedy"].items():
        s, t = result["pass_at_1"][task], g["thinking_tokens"]
        lines.append(
            f"| {task} | {g['n']} | {g['accuracy']:.1%} | {s['accuracy']:.1%} "
            f"| {t['p10']} / {t['p50']} / {t['p90']} / {t['p99']} | {g['unterminated']}, {s['unterminated']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=weights_path())
    parser.add_argument("--per-task", type=int, default=100)
    parser.add_argument("--samples", type=int, default=2, help="samples a problem for pass@1")
    parser.add_argument("--max-new", type=int, default=MAX_NEW, help="tokens after which a problem is given up")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--card", type=Path, help="write this path with .json and .md; print only without it")
    parser.add_argument("--quick", action="store_true", help="greedy only, wrong answers printed")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.quick:
        problems = held_out(args.per_task * len(TASKS), args.seed)
        written = answers(args.weights, problems, args.max_new)
        tokenizer = Tokenizer.from_file(str(args.weights / "tokenizer.json"))
        for problem, ids in zip(problems, written, strict=True):
            text = tokenizer.decode(ids, skip_special_tokens=True)
            if not check(problem, text):
                print(f"--- {problem.question}\n{text}")
        for task, found in score(args.weights, problems, written).items():
            lengths, unterminated = found["thinking_tokens"], found["unterminated"]
            print(f"{task:16} {found['accuracy']:.3f}  {lengths}  unterminated {unterminated}")
        return
    result = card(args.weights, args.per_task, args.seed, args.samples, args.max_new)
    print(table(result))
    if args.card:
        args.card.parent.mkdir(parents=True, exist_ok=True)
        args.card.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
        args.card.with_suffix(".md").write_text(table(result))


if __name__ == "__main__":
    main()
