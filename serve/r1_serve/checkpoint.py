"""A checkpoint directory as the router reads it: tokenizer, chat template, special ids, sampling defaults. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from r1_serve.errors import InvalidRequest, StartupError
from r1_serve.nano import weights_path
from r1_serve.settings import models_folder

BUILTIN = "builtin:r1-nano"
THINK, THINK_END = "<think>", "</think>"


def checkpoint_path(name: str) -> Path:
    """The directory of a plan's ``model.checkpoint``; a hub id is one below ``R1_MODELS``. Raises StartupError."""
    path, folder = weights_path() if name == BUILTIN else Path(name), models_folder()
    if folder is not None and name != BUILTIN:
        path = folder / name  # an absolute name stays what it is
    if not (path / "config.json").is_file():
        where = f" (looked in {path})" if str(path) != name else ""
        raise StartupError(
            f"no checkpoint at {name}{where}: expected a directory with config.json, a hub id below R1_MODELS, "
            f"or {BUILTIN}"
        )
    return path


@dataclass(frozen=True)
class SamplingDefaults:
    """What a request that says nothing gets. The values here are R1's; ``generation_config.json`` goes first."""

    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True)
class Checkpoint:
    """What turns messages into token ids and back. Compare by identity; loading costs up to a second.

    ``control`` are the added tokens (``<｜User｜>``, ``<think>``, ...): they steer the model, so clients' text never
    becomes one and none is ever shown. ``plain`` is the tokenizer without them. ``mtp_layers``: that draft tokens.
    """

    name: str
    tokenizer: Tokenizer
    plain: Tokenizer
    control: Mapping[str, int]
    template: jinja2.Template
    template_tokens: Mapping[str, str]
    eos_ids: tuple[int, ...]
    vocab_size: int
    mtp_layers: int
    sampling: SamplingDefaults

    @property
    def think_id(self) -> int | None:
        return self.control.get(THINK)

    @property
    def think_end_id(self) -> int | None:
        return self.control.get(THINK_END)

    @cached_property
    def token_bytes(self) -> tuple[bytes, ...]:
        """The bytes of each id's text; empty for control tokens and for ids that pad the vocabulary."""
        byte_of = {char: value for value, char in enumerate(_byte_alphabet())}
        table = [b""] * max(self.vocab_size, self.tokenizer.get_vocab_size(with_added_tokens=True))
        control = set(self.control.values())
        for token, token_id in self.tokenizer.get_vocab(with_added_tokens=True).items():
            if token_id not in control:
                table[token_id] = bytes(byte_of[char] for char in token)
        return tuple(table)

    def render(self, messages: list[dict[str, str]]) -> str:
        """The prompt's text, opened for the assistant. Raises InvalidRequest where the template refuses."""
        try:
            return self.template.render(messages=messages, add_generation_prompt=True, **self.template_tokens)
        except jinja2.TemplateError as e:
            raise InvalidRequest(f"the model's chat template refuses these messages: {e}", field="messages") from e

    @classmethod
    def load(cls, name: str) -> Checkpoint:
        """Read a checkpoint's small files. Raises StartupError naming the file at fault."""
        path = checkpoint_path(name)
        config, generation = _json(path / "config.json"), _json(path / "generation_config.json", optional=True)
        tokenizer_config = _json(path / "tokenizer_config.json")
        tokenizer_json = _json(path / "tokenizer.json")
        added = tokenizer_json.get("added_tokens", [])
        _check_family(tokenizer_json, path)
        eos = generation.get("eos_token_id", config.get("eos_token_id"))
        return cls(
            name=name,
            tokenizer=Tokenizer.from_str(json.dumps(tokenizer_json)),
            plain=Tokenizer.from_str(json.dumps({**tokenizer_json, "added_tokens": []})),
            control={token["content"]: token["id"] for token in added},
            template=_compile(path, tokenizer_config),
            template_tokens={
                key: _content(tokenizer_config[key])
                for key in ("bos_token", "eos_token", "pad_token", "unk_token")
                if tokenizer_config.get(key)
            },
            eos_ids=tuple(eos) if isinstance(eos, list) else (eos,) if isinstance(eos, int) else (),
            vocab_size=int(config.get("vocab_size", 0)),
            mtp_layers=int(config.get("num_nextn_predict_layers") or 0),
            sampling=SamplingDefaults(
                **{
                    field: type(default)(generation.get(field, default))
                    for field, default in vars(SamplingDefaults()).items()
                }
            ),
        )


def _json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if optional:
            return {}
        raise StartupError(f"the checkpoint has no {path.name} in {path.parent}") from None
    except (OSError, ValueError) as e:
        raise StartupError(f"cannot read {path}: {e}") from e
    if not isinstance(value, dict):
        raise StartupError(f"{path}: expected a JSON object")
    return value


def _check_family(tokenizer: dict[str, Any], path: Path) -> None:
    """The R1 family's tokenizers are byte-level, and all their added tokens are control tokens that start with '<'."""
    if (tokenizer.get("decoder") or {}).get("type") != "ByteLevel":
        raise StartupError(f"{path / 'tokenizer.json'}: not a byte-level tokenizer, which all of the R1 family have")
    odd = [token["content"] for token in tokenizer.get("added_tokens", []) if not token["content"].startswith("<")]
    if odd:
        raise StartupError(f"{path / 'tokenizer.json'}: added token {odd[0]!r} does not start with '<'")


def _content(token: Any) -> str:
    """A special token as tokenizer_config.json writes it: a string, or an object around one."""
    return str(token["content"] if isinstance(token, dict) else token)


def _compile(path: Path, tokenizer_config: dict[str, Any]) -> jinja2.Template:
    """The chat template, in a sandbox: a checkpoint is data, not code."""
    file = path / "chat_template.jinja"
    source = file.read_text(encoding="utf-8") if file.is_file() else tokenizer_config.get("chat_template")
    if isinstance(source, list):
        source = next((entry["template"] for entry in source if entry.get("name") == "default"), None)
    if not isinstance(source, str):
        raise StartupError(f"the checkpoint in {path} has no chat template")

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    # trim_blocks, lstrip_blocks and loop controls as in transformers, for which templates are written.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, autoescape=False, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = raise_exception
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as e:
        raise StartupError(f"the chat template of {path} does not parse: {e}") from e


def _byte_alphabet() -> list[str]:
    """The character that stands for each byte in byte-level vocabularies (GPT-2's table), at the byte's index."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(256))
    return [chr(byte if byte in printable else 256 + next(spare)) for byte in range(256)]
