"""One real question over both doors of a router: what `helm test` runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import grpc
import httpx

from r1_serve.errors import R1Error, StartupError
from r1_serve.launch.ask import Refused
from r1_serve.protos import reasoning_pb2 as pb
from r1_serve.protos import reasoning_pb2_grpc as rpc


class Unexpected(R1Error):
    """The answer came and is not what it should be."""

    reason = "unexpected_answer"
    exit_code = 1


@dataclass(frozen=True)
class Reply:
    """What came back over one door; token counts are the router's own."""

    door: str
    reasoning: str
    answer: str
    reasoning_tokens: int
    completion_tokens: int


def smoke(
    question: str, *, url: str, target: str, model: str, max_tokens: int, expect: str | None, key: str | None = None
) -> list[dict[str, Any]]:
    """Ask over HTTP at ``url`` and over gRPC at ``target``, greedily.

    Raises StartupError where nothing answers, Refused where the router refuses, Unexpected where an answer is empty or
    ``expect`` is not in it.
    """
    replies = [
        _http(question, url, model, max_tokens, key),
        _grpc(question, target, model, max_tokens, key),
    ]
    for reply in replies:
        if not reply.answer.strip() or (expect and expect not in reply.answer):
            raise Unexpected(
                f"over {reply.door} the answer is {reply.answer[:200]!r} after {reply.reasoning_tokens} tokens of "
                f"thought, expected {expect!r}: ask it by hand, or set test.expect to the empty string"
            )
    return [asdict(reply) for reply in replies]


def _http(question: str, url: str, model: str, max_tokens: int, key: str | None) -> Reply:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": max_tokens,
    }
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    limit = httpx.Timeout(600, connect=10)
    try:
        response = httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=limit, trust_env=False)
    except httpx.HTTPError as e:
        raise StartupError(f"nothing answers at {url} ({e or type(e).__name__}): is a router ready?") from e
    if response.status_code != 200:
        raise Refused(f"HTTP {response.status_code} from {url}: {response.text[:300]}")
    value = response.json()
    message, usage = value["choices"][0]["message"], value["usage"]
    return Reply(
        "http",
        message.get("reasoning_content") or "",
        message.get("content") or "",
        usage["completion_tokens_details"]["reasoning_tokens"],
        usage["completion_tokens"],
    )


def _grpc(question: str, target: str, model: str, max_tokens: int, key: str | None) -> Reply:
    request = pb.ChatRequest(
        model=model, messages=[pb.Message(role="user", content=question)], temperature=0, max_tokens=max_tokens
    )
    metadata = (("authorization", f"Bearer {key}"),) if key else ()
    texts = {"thinking": "", "answer": ""}
    usage = pb.Usage()
    try:
        with grpc.insecure_channel(target) as channel:
            for event in rpc.ReasoningStub(channel).Chat(request, timeout=600, metadata=metadata):
                kind = event.WhichOneof("event")
                if kind in texts:
                    texts[kind] += getattr(event, kind).text
                elif kind == "usage":
                    usage = event.usage
    except grpc.RpcError as e:
        raise Refused(f"gRPC {e.code().name} from {target}: {e.details()}") from e
    return Reply("grpc", texts["thinking"], texts["answer"], usage.reasoning_tokens, usage.completion_tokens)
