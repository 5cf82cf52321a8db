"""What a rank's prefix cache holds, in the router's own block hashes: vLLM's KV events, translated.

The engine's blocks have another size than the router's and hashes of its own, but its events carry the token ids and
the cache salt, so that the rank computes the hashes the router does. Events come over a socket of this machine in a
folder that only this user may read: they hold prompts.
"""

from __future__ import annotations

import logging
import tempfile
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from r1_cluster.routing.prefix import BLOCK_TOKENS, block_hash, salt_key

from r1_serve.protos import fleet_pb2 as pb

logger = logging.getLogger(__name__)

Send = Callable[[pb.KvChange], None]


@dataclass(frozen=True, slots=True)
class _Node:
    """The chain up to one engine block: what the next one goes on from."""

    key: bytes
    previous: bytes  # hash of the last whole router block
    pending: bytes  # ids after it, 4 bytes each
    parts: tuple[Any, ...]  # engine blocks the pending ids lie in


class Blocks:
    """The router's blocks that the engine's cache holds whole, where its own blocks divide them: see :func:`fits`.

    Errs on the side of less: a block of unknown parent is passed over, and one that the engine holds twice counts as
    gone when the first copy goes.
    """

    def __init__(self, block_tokens: int = BLOCK_TOKENS) -> None:
        self._bytes = 4 * block_tokens
        self._nodes: dict[Any, _Node] = {}  # by the engine's hash
        self._needed_by: dict[Any, list[int]] = {}  # router blocks that lie in an engine block
        self._held: dict[int, None] = {}  # in order of arrival

    def snapshot(self) -> pb.KvChange:
        """All that is held, for a router that has just come."""
        return pb.KvChange(cleared=True, stored=self._held)

    def read(self, events: Iterable[Any]) -> pb.KvChange | None:
        """vLLM's events of one step. None where they change nothing for a router."""
        cleared, removed, stored = False, dict[int, None](), dict[int, None]()
        for event in events:
            kind = type(event).__name__
            if kind == "AllBlocksCleared":
                self.clear()
                removed.clear()
                stored.clear()
                cleared = True
            elif event.medium not in (None, "GPU") or event.group_idx:
                continue  # offloaded copies, and the further caches of hybrid models
            elif kind == "BlockRemoved":
                for block in self._remove(event.block_hashes):
                    stored.pop(block, None)
                    removed[block] = None
            else:
                stored |= dict.fromkeys(self._store(event))
        return pb.KvChange(cleared=cleared, removed=removed, stored=stored) if cleared or removed or stored else None

    def clear(self) -> None:
        self._nodes.clear()
        self._needed_by.clear()
        self._held.clear()

    def _store(self, event: Any) -> list[int]:
        size, ids, new = event.block_size, event.token_ids, list[int]()
        if len(ids) != size * len(event.block_hashes):
            return new  # with holes
        if event.parent_block_hash is None:
            node = _Node(salt_key(_salt(event)), b"", b"", ())
        elif (parent := self._nodes.get(event.parent_block_hash)) is not None:
            node = parent
        else:
            return new
        for at, engine_hash in enumerate(event.block_hashes):
            data = node.pending + array("I", ids[at * size : (at + 1) * size]).tobytes()
            known, previous, parts = engine_hash in self._nodes, node.previous, (*node.parts, engine_hash)
            if len(data) == self._bytes:
                previous, data = block_hash(previous, data, node.key), b""
                if not known and all(part in self._nodes for part in node.parts):
                    new.append(self._hold(int.from_bytes(previous, "big"), parts))
                parts = ()
            node = self._nodes[engine_hash] = _Node(node.key, previous, data, parts)
        return new

    def _hold(self, block: int, parts: tuple[Any, ...]) -> int:
        self._held[block] = None
        for part in parts:
            self._needed_by.setdefault(part, []).append(block)
        return block

    def _remove(self, hashes: Iterable[Any]) -> list[int]:
        gone = []
        for engine_hash in hashes:
            self._nodes.pop(engine_hash, None)
            for block in self._needed_by.pop(engine_hash, ()):
                if block in self._held:
                    del self._held[block]
                    gone.append(block)
        return gone


def _salt(event: Any) -> str:
    """The cache salt is the only text among a first block's extra keys where no LoRA is served."""
    first = event.extra_keys[0] if event.extra_keys else None
    return next((key for key in first or () if isinstance(key, str)), "")


class KvEvents:
    """The engine's event socket, read until :meth:`run` is cancelled."""

    def __init__(self) -> None:
        # vLLM wants "inproc" in what is no TCP address of a data-parallel rank: it then appends the rank.
        self._folder = tempfile.TemporaryDirectory(prefix="r1-inproc-")
        self.blocks = Blocks()

    def engine_arguments(self) -> dict[str, Any]:
        """Keyword arguments of ``AsyncEngineArgs`` that make the engine publish."""
        from vllm.config import KVEventsConfig

        config = KVEventsConfig(
            enable_kv_cache_events=True, publisher="zmq", endpoint=f"ipc://{self._folder.name}/kv", topic="kv"
        )
        return {"kv_events_config": config}

    async def run(self, endpoint: str, send: Send) -> None:
        """``endpoint``: where the engine says it publishes. Call before the first request: nothing is sent again.

        Events that cannot be read end it, and with it what routers believe to be cached: serving does not depend on it.
        """
        try:
            await self._follow(endpoint, send)
        except Exception:
            logger.exception("KV events cannot be read: no prefix hits are expected of this rank any more")
            self.blocks.clear()
            send(pb.KvChange(cleared=True))

    async def _follow(self, endpoint: str, send: Send) -> None:
        import msgspec
        import zmq
        import zmq.asyncio
        from vllm.distributed.kv_events import KVEventBatch

        decode = msgspec.msgpack.Decoder(KVEventBatch).decode
        due = 0
        with zmq.asyncio.Context() as context, context.socket(zmq.SUB) as socket:
            socket.connect(endpoint)
            socket.subscribe(b"kv")
            while True:
                _, number, payload = await socket.recv_multipart()
                if (got := int.from_bytes(number, "big")) != due:
                    logger.warning("%d KV event batches lost: the prefix index starts anew", got - due)
                    self.blocks.clear()
                    send(pb.KvChange(cleared=True))
                due = got + 1
                change = self.blocks.read(decode(payload).events)
                if change is not None:
                    send(change)

    def close(self) -> None:
        self._folder.cleanup()


def fits(block_size: int) -> bool:
    """Whether a router's block is a number of whole engine blocks. In a larger one its hash would say too much: a hit
    needs all of the engine's block."""
    return BLOCK_TOKENS % block_size == 0


def endpoint_of(engine: Any) -> str:
    """Where the rank's one engine publishes, as it resolved it."""
    [source] = engine.engine_core.get_kv_event_sources().values()
    return str(source.endpoint)
