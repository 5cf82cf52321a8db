from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from r1_serve.checkpoint import BUILTIN, Checkpoint, checkpoint_path
from r1_serve.errors import InvalidRequest, StartupError
from r1_serve.nano import weights_path

Edit = Callable[[str, Callable[[dict[str, Any]], None]], Path]


@pytest.fixture
def edited(tmp_path: Path) -> Edit:
    """A copy of r1-nano's small files with one of them changed."""
    for file in weights_path().glob("*.json"):
        shutil.copy(file, tmp_path)

    def edit(name: str, change: Callable[[dict[str, Any]], None]) -> Path:
        value = json.loads((tmp_path / name).read_text())
        change(value)
        (tmp_path / name).write_text(json.dumps(value))
        return tmp_path

    return edit


def test_the_built_in_name_leads_to_the_shipped_weights() -> None:
    assert checkpoint_path(BUILTIN) == weights_path()
    assert checkpoint_path(str(weights_path())) == weights_path()


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=rf"no checkpoint at {tmp_path}: expected a directory"):
        checkpoint_path(str(tmp_path))


def test_finding_and_loading_a_checkpoint_imports_neither_torch_nor_vllm() -> None:
    code = (
        "import sys; from r1_serve.checkpoint import Checkpoint; Checkpoint.load('builtin:r1-nano');"
        "sys.exit(str([m for m in ('torch', 'vllm', 'transformers', 'ray') if m in sys.modules] or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


def test_r1_nano_has_r1s_shape() -> None:
    checkpoint = Checkpoint.load(BUILTIN)
    assert checkpoint.control["<think>"] == checkpoint.think_id
    assert checkpoint.control["</think>"] == checkpoint.think_end_id
    assert checkpoint.eos_ids == (checkpoint.control["<｜end▁of▁sentence｜>"],)
    assert (checkpoint.sampling.temperature, checkpoint.sampling.top_p) == (0.6, 0.95)


def test_generation_config_gives_the_sampling_defaults(edited: Edit) -> None:
    path = edited("generation_config.json", lambda c: c.update(temperature=1, top_k=20, eos_token_id=[1, 4]))
    loaded = Checkpoint.load(str(path))
    assert (loaded.sampling.temperature, loaded.sampling.top_p, loaded.sampling.top_k) == (1.0, 0.95, 20)
    assert loaded.eos_ids == (1, 4)


def test_without_generation_config_r1s_defaults_hold(edited: Edit) -> None:
    path = edited("config.json", lambda c: None)
    (path / "generation_config.json").unlink()
    loaded = Checkpoint.load(str(path))
    assert (loaded.sampling.temperature, loaded.sampling.top_p) == (0.6, 0.95)
    assert loaded.eos_ids == (1,)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_missing_file_is_named(name: str, edited: Edit) -> None:
    path = edited("config.json", lambda c: None)
    (path / name).unlink()
    with pytest.raises(StartupError, match=f"no {name}"):
        Checkpoint.load(str(path))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("tokenizer.json", lambda t: t.update(decoder={"type": "WordPiece"}), "not a byte-level tokenizer"),
        ("tokenizer.json", lambda t: t["added_tokens"][0].update(content="[BOS]"), r"'\[BOS\]' does not start"),
        ("tokenizer_config.json", lambda t: t.pop("chat_template"), "no chat template"),
        ("tokenizer_config.json", lambda t: t.update(chat_template="{% if %}"), "does not parse"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused(
    name: str, change: Callable[[dict[str, Any]], None], message: str, edited: Edit
) -> None:
    with pytest.raises(StartupError, match=message):
        Checkpoint.load(str(edited(name, change)))


def test_a_template_file_goes_before_the_configs(edited: Edit) -> None:
    path = edited("tokenizer_config.json", lambda t: t.pop("chat_template"))
    (path / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0]['content'] }}")
    assert Checkpoint.load(str(path)).render([{"role": "user", "content": "x"}]) == "<｜begin▁of▁sentence｜>x"


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no system prompts, please') }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
    ],
)
def test_a_template_can_refuse_but_not_reach_out_of_its_sandbox(template: str, edited: Edit) -> None:
    loaded = Checkpoint.load(str(edited("tokenizer_config.json", lambda t: t.update(chat_template=template))))
    with pytest.raises(InvalidRequest, match="chat template refuses") as fault:
        loaded.render([{"role": "user", "content": "x"}])
    assert fault.value.field == "messages"


def test_a_hub_id_is_looked_for_below_r1_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "deepseek-ai" / "DeepSeek-R1"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    monkeypatch.setenv("R1_MODELS", str(tmp_path))
    assert checkpoint_path("deepseek-ai/DeepSeek-R1") == folder
    assert checkpoint_path(str(folder)) == folder
    assert checkpoint_path("builtin:r1-nano") == weights_path()
    with pytest.raises(StartupError, match=f"looked in {tmp_path}/deepseek-ai/other"):
        checkpoint_path("deepseek-ai/other")
