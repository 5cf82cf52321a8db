"""r1-nano's layer for the token after next: `python -m r1_serve.nano.mtp --minutes 20`.

R1's checkpoint has one such layer (DeepSeek-V3 report, section 2.2): from the model's last hidden state and the token
that was chosen after it, it drafts the next one, which speculative decoding verifies. The model stays as it is: the
layer is trained to its probabilities, so that drafts are taken as often as may be, and lies in a file of its own.

Shapes as in model.py.
"""

# torch is untyped to mypy here, so its base classes and decorators are Any.
# mypy: disable-error-code="misc, untyped-decorator"

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from r1_serve.nano import weights_path
from r1_serve.nano.data import IGNORED, batches
from r1_serve.nano.export import MTP_FILE, block_tensors, load, stored
from r1_serve.nano.model import Block, NanoForTraining, RMSNorm, initialise
from r1_serve.nano.muon import quick_bfloat16
from r1_serve.nano.train import MIX, learn, optimizers, rate


class NextButOne(nn.Module):
    """Hidden states [B, T, D] after the model's last norm and the tokens [B, T] that follow them -> logits of the
    tokens after those. Embedding and head are the model's."""

    def __init__(self, model: NanoForTraining) -> None:
        super().__init__()
        self.s = s = model.s
        self.enorm = RMSNorm(s.hidden_size, s.rms_norm_eps)
        self.hnorm = RMSNorm(s.hidden_size, s.rms_norm_eps)
        self.eh_proj = nn.Linear(2 * s.hidden_size, s.hidden_size, bias=False)
        self.mtp_block = Block(s, dense=False)
        self.norm = RMSNorm(s.hidden_size, s.rms_norm_eps)
        initialise(self)  # beginning with a copy of the last layer was tried: it learns far more slowly
        self.norm.load_state_dict(model.norm.state_dict())

    def forward(self, model: NanoForTraining, hidden_BTD: Tensor, tokens_BT: Tensor) -> Tensor:
        T = tokens_BT.shape[1]
        embedded = model.embed_tokens(tokens_BT).to(hidden_BTD.dtype)
        embedded[:, 0] = 0  # as vLLM does at position 0
        x = self.eh_proj(torch.cat((self.enorm(embedded), self.hnorm(hidden_BTD)), dim=-1))
        mask = torch.full((T, T), float("-inf"), device=x.device, dtype=x.dtype).triu(1)
        x = self.mtp_block(x, model.cos[:T].to(x.dtype), model.sin[:T].to(x.dtype), mask)
        return cast(Tensor, model.lm_head(self.norm(x)))


def drafted(model: NanoForTraining, layer: NextButOne, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Of the tokens that the model writes: their probabilities by the model and logits by the layer, both
    [tokens, vocabulary]. inputs and targets as of data.batches."""
    with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=quick_bfloat16(inputs.device)):
        with torch.no_grad():
            hidden = model.hidden(inputs)
            wanted = model.lm_head(hidden)
        logits = layer(model, hidden[:, :-1], inputs[:, 1:])
    learned = targets[:, 1:] != IGNORED
    return wanted[:, 1:][learned].float().softmax(-1), logits[learned].float()


def save(layer: NextButOne, model: NanoForTraining, folder: Path) -> None:
    """Beside the model's own file, under DeepSeek-V3's names: the layer after the last one, with embedding and head
    once more; and config.json says that it is there."""
    at = f"model.layers.{model.s.num_hidden_layers}"
    tensors = block_tensors(layer.mtp_block, at) | {
        f"{at}.enorm.weight": layer.enorm.weight,
        f"{at}.hnorm.weight": layer.hnorm.weight,
        f"{at}.eh_proj.weight": layer.eh_proj.weight,
        f"{at}.shared_head.norm.weight": layer.norm.weight,
        f"{at}.shared_head.head.weight": model.lm_head.weight,
        f"{at}.embed_tokens.weight": model.embed_tokens.weight,
    }
    save_file(stored(tensors), folder / MTP_FILE, metadata={"format": "pt"})
    (folder / MTP_FILE).chmod(0o644)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["num_nextn_predict_layers"] = 1
    (folder / "config.json").write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n")


def train(folder: Path, *, minutes: float, batch_tokens: int, threads: int, seed: int) -> dict[str, float]:
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = load(folder).requires_grad_(False)
    layer = NextButOne(model)
    opts = optimizers(layer, model.s.num_attention_heads, muon_lr=0.02, adam_lr=0.002)
    stream = batches(tokenizer, random.Random(seed), batch_tokens, MIX)
    start, total, step, seen, agreed, loss_so_far = time.monotonic(), minutes * 60, 0, 0, 0.0, 0.0
    while (elapsed := time.monotonic() - start) < total or not step:
        share = rate(elapsed, total, total / 3, step)
        inputs, targets = next(stream)
        wanted, logits = drafted(model, layer, inputs, targets)
        loss = F.cross_entropy(logits, wanted)
        learn(layer, opts, loss, share)
        step, seen = step + 1, seen + inputs.numel()
        now = float((wanted.argmax(-1) == logits.argmax(-1)).float().mean())
        agreed = now if step == 1 else 0.98 * agreed + 0.02 * now
        loss_so_far = loss.item() if step == 1 else 0.98 * loss_so_far + 0.02 * loss.item()
        if step % 25 == 0:
            print(f"{elapsed / 60:5.1f} min  step {step}  loss {loss_so_far:.4f}  agreed {agreed:.3f}", flush=True)
    save(layer, model, folder)
    return {"minutes": minutes, "steps": step, "tokens": seen, "loss": loss_so_far, "agreed": agreed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="wall-clock length of this run")
    parser.add_argument("--weights", type=Path, default=weights_path(), help="checkpoint directory to add the layer to")
    parser.add_argument("--batch-tokens", type=int, default=2048, help="tokens in a step, padding included")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    options = {"minutes": args.minutes, "batch_tokens": args.batch_tokens, "threads": args.threads, "seed": args.seed}
    print(json.dumps(train(args.weights, **options)))


if __name__ == "__main__":
    main()
