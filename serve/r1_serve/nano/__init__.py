"""r1-nano: a 6 M-parameter DeepSeek-V3 that really reasons, over arithmetic, lists and letters."""

from __future__ import annotations

from pathlib import Path


def weights_path() -> Path:
    """The directory of the shipped checkpoint: config, tokenizer, chat template and safetensors."""
    return Path(__file__).parent / "weights"
