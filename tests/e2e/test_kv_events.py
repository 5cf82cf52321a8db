"""What ranks cache is known exactly: a fleet of dense ranks whose engines publish KV events, and its router's picks.

DeepSeek's attention has no prefix cache on CPU, so the model is a small Llama with random weights and r1-nano's words.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import yaml
from r1_bench.fleet import fleet
from r1_cluster.plan import Plan
from r1_serve.nano import weights_path
from transformers import LlamaConfig, LlamaForCausalLM

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SHARED = "You are careful. " * 60


def dense(folder: Path) -> Path:
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    LlamaForCausalLM(shape).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(weights_path() / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Two gangs of one rank, with a cache of some thousand tokens each."""
    folder = tmp_path_factory.mktemp("kv-events")
    plan = Plan.load("nano-tp1").model_dump(mode="json")
    plan["name"] = "dense"
    plan["model"]["checkpoint"] = str(dense(folder / "checkpoint"))
    plan["engine"]["enable_prefix_caching"] = True
    plan["engine"]["max_model_len"] = 512  # random weights answer the rehearsal's own question to the end of it
    plan["fleet"]["kv_cache_gib_per_rank"] = 0.01
    plan["pools"][0]["gangs"] = 2
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(plan), encoding="utf-8")
    with (
        fleet(str(path), folder, {"R1_DEBUG_ROUTING": "1"}) as running,
        httpx.Client(base_url=running.url, trust_env=False, timeout=60) as client,
    ):
        yield client


def ask(http: httpx.Client, system: str, user: str) -> int:
    """Prompt tokens that were found cached."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    answer = http.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 8, "temperature": 0})
    assert answer.status_code == 200, answer.text
    cached: int = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return cached


def believed(http: httpx.Client) -> tuple[str, dict[str, float]]:
    """Of the last pick: the rank, and the points each rank got for what it has of the prompt."""
    last: dict[str, Any] = http.get("/debug/routing").json()["r1-nano"]["recent"][0]
    picked = re.match(r"picked ([^;]+);", last["explanation"])
    assert picked
    points = re.findall(r"(\S+)=[\d.]+ \([^)]*prefix ([\d.]+)", last["explanation"])
    return picked[1], {rank: float(number) for rank, number in points}


def test_the_router_knows_who_has_a_prompt_and_who_has_it_no_more(http: httpx.Client) -> None:
    assert ask(http, SHARED, "What is 40 + 85?") == 0
    first, points = believed(http)
    assert set(points.values()) == {0.0}

    assert ask(http, SHARED, "What is 41 + 85?") > 0
    again, points = believed(http)
    assert again == first
    assert points[first] > 0
    assert [number for rank, number in points.items() if rank != first] == [0.0]

    for number in range(40):  # more than both caches hold: a guess by what was sent would not notice
        ask(http, f"{number} is a number. " * 60, "Is it prime?")
    assert ask(http, SHARED, "What is 42 + 85?") == 0
    _, points = believed(http)
    assert set(points.values()) == {0.0}
