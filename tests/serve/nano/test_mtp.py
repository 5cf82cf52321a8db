"""The layer that drafts lies beside the model under DeepSeek-V3's names, and goes with the model it was made for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from r1_serve.nano import weights_path
from r1_serve.nano.export import MTP_FILE, load, save
from r1_serve.nano.mtp import train
from safetensors.torch import load_file
from tokenizers import Tokenizer

AT = "model.layers.4"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(weights_path(), tmp_path / "nano")
    return tmp_path / "nano"


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_shipped_layer_has_the_models_embedding_and_head() -> None:
    model, layer = load_file(weights_path() / "model.safetensors"), load_file(weights_path() / MTP_FILE)
    assert torch.equal(layer[f"{AT}.embed_tokens.weight"], model["model.embed_tokens.weight"])
    assert torch.equal(layer[f"{AT}.shared_head.head.weight"], model["lm_head.weight"])
    assert layer[f"{AT}.eh_proj.weight"].shape == (192, 384)
    assert not set(layer) & set(model)


def test_training_writes_the_same_tensors_and_says_so_in_the_config(folder: Path) -> None:
    shipped = {name: tensor.shape for name, tensor in load_file(folder / MTP_FILE).items()}
    model = (folder / "model.safetensors").read_bytes()
    (folder / MTP_FILE).unlink()
    done = train(folder, minutes=1e-6, batch_tokens=256, threads=1, seed=0)
    assert done["steps"] == 1
    assert {name: tensor.shape for name, tensor in load_file(folder / MTP_FILE).items()} == shipped
    assert (folder / "model.safetensors").read_bytes() == model
    assert json.loads((folder / "config.json").read_text())["num_nextn_predict_layers"] == 1


def test_another_model_comes_without_the_layer_of_the_one_before(folder: Path) -> None:
    save(load(folder), Tokenizer.from_file(str(folder / "tokenizer.json")), folder)
    assert not (folder / MTP_FILE).exists()
    assert "num_nextn_predict_layers" not in json.loads((folder / "config.json").read_text())
