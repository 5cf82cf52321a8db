"""vLLM's KV events in the router's block hashes, and over the socket vLLM publishes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from r1_cluster.routing.prefix import chain_of
from r1_serve.protos import fleet_pb2 as pb
from r1_serve.workers.generations import Generations
from r1_serve.workers.kv_events import Blocks, KvEvents, fits

PROMPT = list(range(100, 130))
ROUTER_BLOCK = 4


def numbers(token_ids: list[int], salt: str = "", block_tokens: int = ROUTER_BLOCK) -> list[int]:
    return [int.from_bytes(block, "big") for block in chain_of(token_ids, block_tokens, salt)]


def stored(
    token_ids: list[int], size: int, *, after: int = 0, salt: str = "", hashes: list[int] | None = None, **more: Any
) -> Any:
    """The event for ``token_ids[after:]``, in blocks of ``size`` that the engine calls by the position of their end."""
    from vllm.distributed.kv_events import BlockStored

    ends = list(range(after + size, len(token_ids) + 1, size))
    return BlockStored(
        block_hashes=[b"%d" % end for end in ends],
        parent_block_hash=b"%d" % after if after else None,
        token_ids=token_ids[after : ends[-1]],
        block_size=size,
        lora_id=None,
        medium=more.pop("medium", "GPU"),
        lora_name=None,
        extra_keys=[(salt,) if salt and not after else None, *[None] * (len(ends) - 1)],
        **more,
    )


def removed(*ends: int) -> Any:
    from vllm.distributed.kv_events import BlockRemoved

    return BlockRemoved(block_hashes=[b"%d" % end for end in ends], medium="GPU")


@pytest.fixture
def blocks() -> Blocks:
    return Blocks(ROUTER_BLOCK)


def read(blocks: Blocks, *events: Any) -> pb.KvChange:
    return blocks.read(events) or pb.KvChange()


@pytest.mark.parametrize("size", [1, 2, 4])
def test_whatever_the_engines_block_size_the_hashes_are_the_routers(blocks: Blocks, size: int) -> None:
    assert list(read(blocks, stored(PROMPT, size)).stored) == numbers(PROMPT)


@pytest.mark.parametrize(("size", "fit"), [(16, True), (32, True), (64, True), (48, False), (128, False)])
def test_an_engine_whose_blocks_do_not_divide_the_routers_is_not_followed(size: int, fit: bool) -> None:
    assert fits(size) == fit


def test_a_prompt_that_grows_goes_on_from_its_parent(blocks: Blocks) -> None:
    first = read(blocks, stored(PROMPT[:10], 2))
    then = read(blocks, stored(PROMPT, 2, after=10))
    assert [*first.stored, *then.stored] == numbers(PROMPT)


def test_a_tenants_salt_keys_the_hashes(blocks: Blocks) -> None:
    assert list(read(blocks, stored(PROMPT, 2, salt="acme")).stored) == numbers(PROMPT, "acme")


def test_a_router_block_is_gone_with_the_first_of_its_parts(blocks: Blocks) -> None:
    read(blocks, stored(PROMPT[:8], 2))
    assert list(read(blocks, removed(8)).removed) == numbers(PROMPT[:8])[1:]
    assert read(blocks, removed(6)) == pb.KvChange()
    assert list(blocks.snapshot().stored) == numbers(PROMPT[:4])


def test_what_comes_and_goes_within_a_step_does_not_stay(blocks: Blocks) -> None:
    assert not read(blocks, stored(PROMPT[:4], 4), removed(4)).stored
    assert not blocks.snapshot().stored


def test_a_block_that_comes_back_is_held_again(blocks: Blocks) -> None:
    read(blocks, stored(PROMPT[:8], 4), removed(8))
    assert list(read(blocks, stored(PROMPT[:8], 4, after=4)).stored) == numbers(PROMPT[:8])[1:]


def test_a_reported_reuse_is_no_news(blocks: Blocks) -> None:
    read(blocks, stored(PROMPT[:8], 4))
    assert blocks.read([stored(PROMPT[:8], 4)]) is None


def test_a_cleared_cache_is_told_and_what_follows_counts(blocks: Blocks) -> None:
    from vllm.distributed.kv_events import AllBlocksCleared

    read(blocks, stored(PROMPT, 4))
    change = read(blocks, AllBlocksCleared(), stored(PROMPT[:4], 4))
    assert (change.cleared, list(change.stored)) == (True, numbers(PROMPT[:4]))
    assert list(blocks.snapshot().stored) == numbers(PROMPT[:4])


@pytest.mark.parametrize(
    "event",
    [
        lambda: stored(PROMPT, 2, after=10),
        lambda: stored(PROMPT, 2, medium="CPU"),
        lambda: stored(PROMPT, 2, group_idx=1),
        lambda: removed(2),
    ],
    ids=["of unknown parent", "an offloaded copy", "another cache's", "never stored"],
)
def test_what_the_router_could_not_use_is_passed_over(blocks: Blocks, event: Any) -> None:
    assert blocks.read([event()]) is None


class Outbox:
    def __init__(self) -> None:
        self.frames: list[pb.Frame] = []
        self.came = asyncio.Event()

    def send(self, frame: pb.Frame) -> None:
        self.frames.append(frame)
        self.came.set()


class Publishing:
    """vLLM's publisher for data-parallel rank 1, and a rank's reader of it."""

    def __init__(self) -> None:
        from vllm.distributed.kv_events import ZmqEventPublisher

        self.events, self.generations, self.outbox = KvEvents(), Generations(), Outbox()
        config = self.events.engine_arguments()["kv_events_config"]
        self._publisher = ZmqEventPublisher(1, endpoint=config.endpoint, topic=config.topic)
        self.generations.kv_snapshot = self.events.blocks.snapshot
        self.generations.open(self.outbox)
        self.outbox.came.clear()
        endpoint = self._publisher.get_publisher_config().endpoint
        self.reading = asyncio.create_task(self.events.run(endpoint, self.generations.kv_changed))

    async def publish_until_told(self, *events: Any) -> None:
        """Again and again: a subscriber misses what is published before it is connected."""
        from vllm.distributed.kv_events import EventBatch

        async with asyncio.timeout(10):
            while not self.outbox.came.is_set():
                self._publisher.publish(EventBatch(ts=0.0, events=list(events)))
                await asyncio.sleep(0.05)

    async def close(self) -> None:
        self.reading.cancel()
        await asyncio.gather(self.reading, return_exceptions=True)
        self._publisher.shutdown()
        self.events.close()


@pytest.fixture
async def publishing() -> AsyncIterator[Publishing]:
    made = Publishing()
    yield made
    await made.close()


async def test_vllms_publisher_is_read_and_a_router_that_comes_later_is_told_all(publishing: Publishing) -> None:
    prompt, late = list(range(64)), Outbox()
    await publishing.publish_until_told(stored(prompt, 16))
    publishing.generations.open(late)
    assert list(late.frames[0].kv.stored) == numbers(prompt, block_tokens=64)
    assert late.frames[0].kv.cleared


async def test_events_that_cannot_be_read_end_the_reading_and_what_was_believed(publishing: Publishing) -> None:
    await publishing.publish_until_told(["a new kind"])
    async with asyncio.timeout(10):
        await publishing.reading
    assert publishing.outbox.frames[-1].kv == pb.KvChange(cleared=True)
