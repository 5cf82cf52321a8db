"""Writes a checkpoint directory under DeepSeek-V3's own tensor names, for transformers and vLLM alike."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from r1_serve.nano.model import MLP, Block, NanoForTraining
from r1_serve.nano.tokenizer import BOS, EOS, PAD, special_id, tokenizer_config

MTP_FILE = "mtp.safetensors"  # see mtp.py

# The training model's stacked experts, and the projection of the checkpoint that each holds.
_STACKED = {"gate_EMD": "gate_proj", "up_EMD": "up_proj", "down_EDM": "down_proj"}


def checkpoint(model: NanoForTraining) -> dict[str, Tensor]:
    """The model's tensors, as they are stored."""
    tensors = {
        "model.embed_tokens.weight": model.embed_tokens.weight,
        "model.norm.weight": model.norm.weight,
        "lm_head.weight": model.lm_head.weight,
    }
    for i, layer in enumerate(model.layers):
        tensors |= block_tensors(cast(Block, layer), f"model.layers.{i}")
    return stored(tensors)


def block_tensors(block: Block, at: str) -> dict[str, Tensor]:
    """One layer's, an expert each, under names that begin with ``at``."""
    moe = block.mlp
    tensors = {f"{at}.{n}": p for n, p in block.named_parameters() if isinstance(moe, MLP) or not n.startswith("mlp.")}
    if isinstance(moe, MLP):
        return tensors
    tensors[f"{at}.mlp.gate.weight"] = moe.router
    tensors[f"{at}.mlp.gate.e_score_correction_bias"] = moe.e_score_correction_bias
    for stacked, projection in _STACKED.items():
        for e, weight in enumerate(getattr(moe, stacked)):
            tensors[f"{at}.mlp.experts.{e}.{projection}.weight"] = weight
    for name, parameter in moe.shared.named_parameters():
        tensors[f"{at}.mlp.shared_experts.{name}"] = parameter
    return tensors


def stored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In bfloat16; the correction bias stays float32, as in R1's checkpoint."""
    return {
        name: tensor.detach()
        .to("cpu", torch.float32 if name.endswith("correction_bias") else torch.bfloat16)
        .clone()
        .contiguous()
        for name, tensor in tensors.items()
    }


def save(model: NanoForTraining, tokenizer: Tokenizer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MTP_FILE).unlink(missing_ok=True)  # another model's
    bos, eos, pad = (special_id(tokenizer, t) for t in (BOS, EOS, PAD))
    save_file(checkpoint(model), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes it private; a container's other users read it too
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad}
    generation = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, **ids}
    files = {
        "config.json": model.s.config(bos, eos, pad),
        "generation_config.json": generation,
        "tokenizer_config.json": tokenizer_config(),
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n")


def load(folder: Path) -> NanoForTraining:
    """The model of an exported directory, its bfloat16 weights widened to float32: as they are served."""
    model = NanoForTraining()
    model.eval()
    tensors = load_file(folder / "model.safetensors")
    state = model.state_dict()
    for name in state:
        prefix, _, leaf = name.rpartition(".")
        if leaf in _STACKED:
            experts = [tensors[f"model.{prefix}.experts.{e}.{_STACKED[leaf]}.weight"] for e in range(len(state[name]))]
            state[name] = torch.stack(experts)
        elif leaf in ("router", "e_score_correction_bias"):
            state[name] = tensors[f"model.{prefix}.gate." + ("weight" if leaf == "router" else leaf)]
        else:
            stored = name.replace(".shared.", ".shared_experts.")
            state[name] = tensors[stored if stored in tensors else f"model.{stored}"]
    model.load_state_dict(state)
    return model
