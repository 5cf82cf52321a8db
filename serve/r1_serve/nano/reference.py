"""What transformers answers, greedily in float32: the answers every served layout is held against.

`python -m r1_serve.nano.reference --n 200` prints one JSON object a problem.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from r1_serve.nano import weights_path
from r1_serve.nano.data import prompt_text
from r1_serve.nano.tasks import Problem, held_out
from r1_serve.nano.tokenizer import EOS, PAD, THINK_END, special_id

MAX_NEW = 900
BATCH = 50


def greedy(folder: Path, prompts: list[list[int]], max_new: int = MAX_NEW) -> Iterator[tuple[int, list[int]]]:
    """(index, tokens up to and including the end of the sentence) of each prompt, like lengths together."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    eos, pad = special_id(tokenizer, EOS), special_id(tokenizer, PAD)
    torch.set_num_threads(1)  # a team of threads on busy cores is slower than one
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), BATCH):
        chunk = order[start : start + BATCH]
        width = max(len(prompts[i]) for i in chunk)
        ids = torch.tensor([[pad] * (width - len(prompts[i])) + prompts[i] for i in chunk])
        mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in chunk])
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=mask, do_sample=False, temperature=None, top_p=None, max_new_tokens=max_new,
                eos_token_id=eos, pad_token_id=pad,
            )  # fmt: skip
        for i, row in zip(chunk, out[:, width:].tolist(), strict=True):
            yield i, row[: row.index(eos) + 1] if eos in row else row


def split(tokenizer: Tokenizer, ids: list[int]) -> tuple[str, str]:
    """(thought, answer), white space around them left out; without a closing mark all of it is thought."""
    end = special_id(tokenizer, THINK_END)
    at = ids.index(end) if end in ids else len(ids)
    return tokenizer.decode(ids[:at]).strip(), tokenizer.decode(ids[at + 1 :]).strip()


def answer_all(folder: Path, problems: list[Problem]) -> list[dict[str, object]]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompts = [tokenizer.encode(prompt_text(problem.question)).ids for problem in problems]
    rows: list[dict[str, object]] = [{} for _ in problems]
    for i, ids in greedy(folder, prompts):
        reasoning, answer = split(tokenizer, ids)
        question = problems[i].question
        rows[i] = {"question": question, "reasoning": reasoning, "answer": answer, "completion_tokens": len(ids)}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=weights_path())
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for row in answer_all(args.weights, held_out(args.n, args.seed)):
        sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
