"""Peers side by side: what a round counts, what a ratio is, what is said where a peer cannot be had."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from r1_bench.peers import environments, load
from r1_bench.peers.__main__ import medians, summary
from r1_bench.peers.passthrough import Upstream
from r1_bench.synthetic import Seen, SseClient, body

CHUNK = b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n'
END = b'data: {"choices":[],"usage":{"completion_tokens":3}}\n\ndata: [DONE]\n\n'


@asynccontextmanager
async def server(answer: bytes) -> AsyncIterator[int]:
    """Answers every request on every connection with ``answer``; yields its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split()[0]))
                writer.write(answer)
                if not answer.endswith(b"0\r\n\r\n"):
                    return
        except asyncio.IncompleteReadError:
            return  # the client has gone
        finally:
            writer.close()
            await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        yield listening.sockets[0].getsockname()[1]


def chunked(*parts: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


async def test_a_round_sends_every_prompt_once_and_counts_the_servers_own_tokens() -> None:
    async with server(chunked(CHUNK % b"", CHUNK % b"4", END)) as port:
        found = await load.run(port, "m", [f"prompt {n}" for n in range(7)], streams=3)
    assert (found.streams, found.tokens) == (3, 21)
    assert found.tokens_per_s > 0
    assert found.ttft_ms > 0


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy", "(?s)closed the connection.*busy"),
        (chunked(CHUNK % b"4"), "no whole stream"),
    ],
)
async def test_a_stream_that_is_cut_short_is_an_error_that_says_what_came(answer: bytes, why: str) -> None:
    async with server(answer) as port:
        with pytest.raises(load.LoadError, match=why):
            await load.run(port, "m", ["prompt"], streams=1)


def row(server: str, streams: int, tokens_per_s: float, ttft: float = 10, itl: float = 2) -> dict[str, object]:
    speed = {"tokens_per_s": tokens_per_s, "ttft_ms": ttft, "itl_ms": itl, "cpu_us_per_token": 100}
    return {"round": 1, "server": server, "streams": streams, "tokens": 9, **speed}


def test_ratios_are_of_medians_over_the_rounds_and_null_for_who_was_not_there() -> None:
    rows = [row("vllm", 64, speed) for speed in (100, 200, 900)]
    rows += [row("ours", 64, speed, ttft=5) for speed in (1, 300, 310)]
    rows += [row("vllm", 1, 10, itl=4), row("ours", 1, 10, itl=3)]
    assert len(medians(rows)) == 4
    found = summary(rows, 64)
    assert found["ours_over_vllm"] == 1.5
    assert found["ours_ttft_over_vllm"] == 0.5
    assert found["ours_itl_over_vllm_at_1"] == 0.75
    assert found["vllm_router_over_vllm"] is found["ray_serve_llm_direct_over_vllm"] is None


def test_a_peer_whose_packages_cannot_be_installed_is_unavailable_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(environments, "ENVIRONMENTS", tmp_path)
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(environments.Unavailable, match="vllm-router cannot be installed"):
        environments.python("vllm-router")


async def test_the_server_behind_a_router_sends_each_stream_all_its_chunks() -> None:
    upstream, seen = Upstream(chunks=5, step_s=0), Seen()
    async with await upstream.serve() as listening:
        port = listening.sockets[0].getsockname()[1]
        clients = []
        for _ in range(3):
            client = SseClient(seen, body(), [upstream], look=True)
            await asyncio.get_running_loop().create_connection(lambda client=client: client, "127.0.0.1", port)  # type: ignore[misc]
            await client.first
            clients.append(client)
        assert upstream.sent == 3
        upstream.go()
        await upstream.steps()
        assert upstream.sent == 15
        for client in clients:
            client.close()
            await client.done
