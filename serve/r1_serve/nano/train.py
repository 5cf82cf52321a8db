"""Trains r1-nano: `python -m r1_serve.nano.train --minutes 30`.

Muon for matrices, AdamW for the rest; constant rates, then a linear decay to zero. The schedule is in wall-clock time,
so a slower machine sees fewer tokens, not a longer run. `--state` is written as it goes: with `--resume` a run goes on
from the constant phase.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from r1_serve.nano import weights_path
from r1_serve.nano.data import batches
from r1_serve.nano.export import load, save
from r1_serve.nano.model import DenseMoE, NanoForTraining
from r1_serve.nano.muon import Muon, quick_bfloat16
from r1_serve.nano.tokenizer import build_tokenizer

BIAS_RATE = 1e-3  # gamma of the correction-bias update
# Shares that differ from tasks.WEIGHTS: more of what was learned last, less of what came early. The tokenizer is built
# from tasks.WEIGHTS, so that changing these changes no token.
MIX = {
    "addition": 1.3,
    "subtraction": 0.8,
    "multiplication": 1.0,
    "division": 1.0,
    "primality": 1.0,
    "letters": 2.5,
    "sorting": 2.2,
    "comparison": 4.0,
    "story_two_step": 1.5,
    "quick": 1.2,
}


def optimizers(model: nn.Module, heads: int, muon_lr: float, adam_lr: float) -> list[torch.optim.Optimizer]:
    named = list(model.named_parameters())
    plain = ("embed_tokens", "lm_head", "router")
    matrices = [(n, p) for n, p in named if p.dim() >= 2 and not any(k in n for k in plain)]
    by_head = [p for n, p in matrices if "_b_proj" in n]
    whole = [p for n, p in matrices if "_b_proj" not in n]
    rest = [p for n, p in named if p.dim() < 2 or any(k in n for k in plain)]
    adam = torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    groups: list[dict[str, Any]] = [{"params": whole}, {"params": by_head, "blocks": heads}]
    opts: list[torch.optim.Optimizer] = [Muon(groups, lr=muon_lr, weight_decay=0.02), adam]
    for opt in opts:
        for group in opt.param_groups:
            group["peak"] = group["lr"]
    return opts


def loss_on(model: NanoForTraining, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over thought and answer; inputs and targets [B, T], targets -100 where not learned."""
    with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=quick_bfloat16(inputs.device)):
        logits = model(inputs)
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100)


def rate(elapsed: float, total: float, decay: float, step: int) -> float:
    """Share of the peak learning rate: warm-up over 50 steps, constant, then linear to zero in the last `decay`."""
    left = max(0.0, total - elapsed)
    return min(1.0, (step + 1) / 50) * min(1.0, left / decay)


def learn(model: nn.Module, opts: Sequence[torch.optim.Optimizer], loss: Tensor, share: float) -> None:
    """One step down ``loss``, at this ``share`` of the peak learning rates."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for opt in opts:
        for group in opt.param_groups:
            group["lr"] = group["peak"] * share
        opt.step()
        opt.zero_grad(set_to_none=True)
    for moe in model.modules():
        if isinstance(moe, DenseMoE):
            moe.balance(BIAS_RATE * share)


def train(args: argparse.Namespace) -> dict[str, float]:
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device)
    shipped = args.out / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(shipped)) if shipped.exists() else build_tokenizer()
    model = (load(args.init).train() if args.init else NanoForTraining()).to(device)
    opts = optimizers(model, model.s.num_attention_heads, args.muon_lr, args.adam_lr)
    step, tokens, seed = 0, 0, args.seed
    if args.resume:
        state = torch.load(args.state, map_location=device)
        model.load_state_dict(state["model"])
        for opt, saved in zip(opts, state["optimizers"], strict=True):
            peaks = [group["peak"] for group in opt.param_groups]
            opt.load_state_dict(saved)
            for group, peak in zip(opt.param_groups, peaks, strict=True):
                group["peak"] = peak  # this run's rate, not the one the state was left with
        step, tokens = state["step"], state["tokens"]
        seed += step
    weights = MIX | (json.loads(args.weights) if args.weights else {})
    stream: Iterator[tuple[Tensor, Tensor]] = batches(tokenizer, random.Random(seed), args.batch_tokens, weights)
    start, saved_at, total = time.monotonic(), time.monotonic(), args.minutes * 60
    decay = min(args.decay_minutes * 60, total / 4)  # a short run, too, has a constant phase
    first, running = tokens, 0.0
    while (elapsed := time.monotonic() - start) < total:
        share = rate(elapsed, total, decay, step)
        inputs, targets = (t.to(device) for t in next(stream))
        loss = loss_on(model, inputs, targets)
        learn(model, opts, loss, share)
        step, tokens = step + 1, tokens + inputs.numel()
        value = loss.item()
        running = value if running == 0 else 0.98 * running + 0.02 * value
        if step % 25 == 0:
            speed = (tokens - first) / (time.monotonic() - start)
            progress = f"step {step}  loss {running:.4f}  {tokens / 1e6:.2f} M tokens  {speed:.0f}/s"
            print(f"{elapsed / 60:5.1f} min  {progress}", flush=True)
        if share == 1.0 and time.monotonic() - saved_at > args.save_minutes * 60:
            saved_at = time.monotonic()
            state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in opts]}
            torch.save({**state, "step": step, "tokens": tokens}, args.state)
            save(model, tokenizer, args.state.parent / "rough")
    save(model, tokenizer, args.out)
    return {"minutes": (time.monotonic() - start) / 60, "steps": step, "tokens": tokens, "loss": running}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="wall-clock length of this run")
    parser.add_argument(
        "--decay-minutes", type=float, default=15.0, help="length of the decay at its end, at most a quarter of the run"
    )
    parser.add_argument("--save-minutes", type=float, default=4.0, help="time between resumable states")
    parser.add_argument("--out", type=Path, default=weights_path(), help="checkpoint directory to write")
    parser.add_argument(
        "--state", type=Path, default=Path("nano-state/state.pt"), help="resumable; rough exports beside it"
    )
    parser.add_argument("--resume", action="store_true", help="go on from --state")
    parser.add_argument("--init", type=Path, help="begin with this checkpoint's weights and fresh optimizers")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="tokens in a step, padding included")
    # At 0.02 the steps' noise kept a batch of forty problems from ever learning to copy a word.
    parser.add_argument("--muon-lr", type=float, default=0.008)
    parser.add_argument("--adam-lr", type=float, default=0.002)
    parser.add_argument("--weights", default="", help='JSON of task weights that differ from MIX, {"letters": 3}')
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.state.parent.mkdir(parents=True, exist_ok=True)
    print(json.dumps(train(args)))


if __name__ == "__main__":
    main()
