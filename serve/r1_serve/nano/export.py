"""Writes a checkpoint directory under DeepSeek-V3's own tensor names, for transformers and vLLM alike."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from r1_serve.nano.model import DenseMoE, NanoForTraining
from r1_serve.nano.tokenizer import BOS, EOS, PAD, tokenizer_config


def checkpoint(model: NanoForTraining) -> dict[str, Tensor]:
    """Per-expert tensors in bfloat16; the correction bias stays float32, as in R1's checkpoint."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if ".mlp." not in name or not isinstance(model.get_submodule(name.split(".mlp.")[0]).mlp, DenseMoE):
            tensors[name if name.startswith("lm_head") else f"model.{name}"] = parameter
    for i, layer in enumerate(model.layers):
        moe = layer.mlp
        if not isinstance(moe, DenseMoE):
            continue
        prefix = f"model.layers.{i}.mlp"
        tensors[f"{prefix}.gate.weight"] = moe.router
        tensors[f"{prefix}.gate.e_score_correction_bias"] = moe.e_score_correction_bias
        for kind, stacked in (("gate", moe.gate_EMD), ("up", moe.up_EMD), ("down", moe.down_EDM)):
            for e, weight in enumerate(stacked):
                tensors[f"{prefix}.experts.{e}.{kind}_proj.weight"] = weight
        for name, parameter in moe.shared.named_parameters():
            tensors[f"{prefix}.shared_experts.{name}"] = parameter
    return {
        name: t.detach().to("cpu", torch.float32 if name.endswith("correction_bias") else torch.bfloat16).clone().contiguous()
        for name, t in tensors.items()
    }


def save(model: NanoForTraining, tokenizer: Tokenizer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    bos, eos, pad = (tokenizer.token_to_id(t) for t in (BOS, EOS, PAD))
    save_file(checkpoint(model), folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    generation = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad}
    files = {
        "config.json": model.s.config(bos, eos, pad),
        "generation_config.json": generation,
        "tokenizer_config.json": tokenizer_config(),
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n")
