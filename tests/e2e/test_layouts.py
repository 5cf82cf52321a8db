"""Every layout answers as transformers does, over the OpenAI SDK and over gRPC."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence

import grpc
import httpx
import openai
import psutil
import pytest
from r1_bench import topology
from r1_bench.fleet import Fleet, fleet
from r1_bench.topology import Reply, accuracy, ask_all, different, reference
from r1_cluster.plan import Plan
from r1_cluster.simulator.costs import costs_of
from r1_serve.nano import weights_path
from r1_serve.nano.tasks import Problem
from r1_serve.protos import reasoning_pb2 as pb
from r1_serve.protos import reasoning_pb2_grpc as rpc
from tokenizers import Tokenizer

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

DRAFTS = "nano-mtp"  # nano-tp1 with drafts: whose every step may bring two tokens
LAYOUTS = [DRAFTS, "nano-dp2-ep2", "nano-tp2-ep2"]
SAME = 0.98
POINT = 0.01


@pytest.fixture(scope="module")
def sdk(served: Fleet) -> Iterator[openai.OpenAI]:
    with (
        openai.DefaultHttpxClient(trust_env=False) as http,
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, http_client=http) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def transformers_replies() -> Callable[[Sequence[Reply]], Sequence[Reply]]:
    """transformers' replies to the questions of the served ones: worked out once, on what the first layout served."""
    known: list[Reply] = []

    def replies(served: Sequence[Reply]) -> Sequence[Reply]:
        if not known:
            known.extend(reference(served))
        return known

    return replies


@pytest.mark.parametrize("served", LAYOUTS, indirect=True)
class TestLayout:
    def test_held_out_problems_are_answered_as_transformers_does(
        self,
        served: Fleet,
        problems: Sequence[Problem],
        transformers_replies: Callable[[Sequence[Reply]], Sequence[Reply]],
    ) -> None:
        replies = asyncio.run(ask_all(served, [problem.question for problem in problems]))
        truth = transformers_replies(replies)
        wrong = different(problems, truth, replies)
        assert len(wrong) <= (1 - SAME) * len(problems), wrong
        assert abs(accuracy(problems, replies) - accuracy(problems, truth)) <= POINT

    def test_the_openai_sdk_streams_what_it_returns_whole(self, sdk: openai.OpenAI) -> None:
        asked = {
            "model": "r1-nano",
            "messages": [{"role": "user", "content": "What is 47 + 85?"}],
            "temperature": 0,
        }
        whole = sdk.chat.completions.create(**asked)  # type: ignore[call-overload]
        message = whole.choices[0].message
        thought, answer, usage = "", "", None
        for chunk in sdk.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):  # type: ignore[call-overload]
            usage = chunk.usage or usage
            for choice in chunk.choices:
                thought += getattr(choice.delta, "reasoning_content", None) or ""
                answer += choice.delta.content or ""
        assert (thought, answer) == (message.reasoning_content, message.content)
        assert message.reasoning == message.reasoning_content
        assert "132" in answer
        assert usage == whole.usage

    def test_usage_counts_every_token_once(self, sdk: openai.OpenAI) -> None:
        got = sdk.chat.completions.create(
            model="r1-nano", messages=[{"role": "user", "content": "What is 47 + 85?"}], temperature=0
        )
        usage, tokenizer = got.usage, Tokenizer.from_file(str(weights_path() / "tokenizer.json"))
        assert usage is not None
        assert usage.completion_tokens_details is not None
        text = f"{got.choices[0].message.reasoning_content.strip()}\n"  # type: ignore[attr-defined]
        assert usage.completion_tokens_details.reasoning_tokens == len(tokenizer.encode(text).ids)
        answer = tokenizer.encode(f"</think>\n\n{(got.choices[0].message.content or '').strip()}").ids
        assert usage.completion_tokens == usage.completion_tokens_details.reasoning_tokens + len(answer) + 1  # and eos
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens

    async def test_grpc_gives_the_same_thought_answer_and_usage(self, served: Fleet, sdk: openai.OpenAI) -> None:
        whole = sdk.chat.completions.create(
            model="r1-nano", messages=[{"role": "user", "content": "Is 91 prime?"}], temperature=0
        )
        request = pb.ChatRequest(
            model="r1-nano", messages=[pb.Message(role="user", content="Is 91 prime?")], temperature=0
        )
        thought = answer = ""
        usage = None
        async with grpc.aio.insecure_channel(served.grpc) as channel:
            async for event in rpc.ReasoningStub(channel).Chat(request, timeout=60):
                match event.WhichOneof("event"):
                    case "thinking":
                        thought += event.thinking.text
                    case "answer":
                        answer += event.answer.text
                    case "usage":
                        usage = event.usage
        message = whole.choices[0].message
        assert (thought, answer) == (message.reasoning_content, message.content)  # type: ignore[attr-defined]
        assert usage is not None
        assert whole.usage is not None
        assert usage.completion_tokens == whole.usage.completion_tokens

    def test_a_rank_holds_the_kv_tokens_that_the_simulator_counts(self, served: Fleet) -> None:
        plan = Plan.load(served.plan)
        ranks = plan.pools[0].layout.data_parallel_size * plan.pools[0].gangs
        (held,) = served.metrics("r1_rank_kv_tokens")
        assert held / ranks == pytest.approx(costs_of(plan, plan.pools[0]).kv_tokens, rel=0.01)

    def test_a_client_that_leaves_frees_its_rank(self, served: Fleet) -> None:
        asked = {
            "model": "r1-nano",
            "messages": [{"role": "user", "content": "Is 523 prime?"}],
            "stream": True,
            "max_tokens": 1500,
            "temperature": 2,
        }
        with (
            httpx.Client(base_url=served.url, trust_env=False) as http,
            http.stream("POST", "/v1/chat/completions", json=asked) as response,
        ):
            next(response.iter_lines())
        deadline = time.monotonic() + 5
        while running(served) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert running(served) == 0

    def test_a_bad_request_names_its_field_and_disturbs_nobody(self, sdk: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError) as refused:
            sdk.chat.completions.create(model="r1-nano", messages=[{"role": "user", "content": "1 + 1"}], temperature=5)
        assert refused.value.param == "temperature"
        with pytest.raises(openai.NotFoundError):
            sdk.chat.completions.create(model="gpt", messages=[{"role": "user", "content": "1 + 1"}])


@pytest.mark.parametrize("served", [DRAFTS], indirect=True)
class TestDrafts:
    def test_most_drafts_are_right(self, served: Fleet, sdk: openai.OpenAI) -> None:
        before = served.metrics(*topology.DRAFTS)
        sdk.chat.completions.create(
            model="r1-nano", messages=[{"role": "user", "content": "What is 47 + 85?"}], temperature=0
        )
        drafted, accepted = (now - was for now, was in zip(served.metrics(*topology.DRAFTS), before, strict=True))
        assert drafted > 0
        assert accepted > drafted / 2

    def test_a_budget_is_exact_though_a_step_brings_two_tokens(self, sdk: openai.OpenAI) -> None:
        whole = self.thought(sdk, None)
        for budget in range(11, 17):
            assert self.thought(sdk, budget)[1] == budget
            assert whole[0].startswith(self.thought(sdk, budget)[0])

    @staticmethod
    def thought(sdk: openai.OpenAI, budget: int | None) -> tuple[str, int]:
        extra = {} if budget is None else {"thinking_token_budget": budget}
        got = sdk.chat.completions.create(
            model="r1-nano",
            messages=[{"role": "user", "content": "What is 47 + 85?"}],
            temperature=0,
            extra_body=extra,
        )
        assert got.choices[0].message.content
        assert got.usage is not None
        assert got.usage.completion_tokens_details is not None
        thought: str = got.choices[0].message.reasoning  # type: ignore[attr-defined]
        return thought, got.usage.completion_tokens_details.reasoning_tokens or 0


def running(served: Fleet) -> float:
    return served.metrics("r1_rank_running")[0]


def test_an_interrupted_fleet_leaves_no_process_behind() -> None:
    with fleet("nano-tp1") as running_fleet:
        command = psutil.Process(running_fleet.pid)
        family = command.children(recursive=True)
        assert len(family) > 3
        os.kill(running_fleet.pid, signal.SIGINT)
        gone, alive = psutil.wait_procs([command, *family], timeout=30)
    assert alive == []
    assert len(gone) == len(family) + 1
