"""Messages to token ids, without ever letting a client's text become a control token."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from r1_serve.checkpoint import THINK_END, Checkpoint
from r1_serve.errors import ContextLengthExceeded, InvalidRequest
from r1_serve.router.request import Message

# Tokenising runs at megabytes a second: below this it takes the loop under about a millisecond.
INLINE_CHARACTERS = 4096

# Others take turns in so many threads: any number of long prompts leaves the loop a core.
_THREADS = ThreadPoolExecutor(max(1, (os.cpu_count() or 2) // 2), thread_name_prefix="tokenise")

# Of a prompt with more characters than this a token of the context, its start is tokenised first: where twice the
# context's tokens are in there, the rest changes nothing.
SAMPLE_CHARACTERS = 16

# Unicode's noncharacters: never assigned, so rarely in a message, and all kept by tokenizers' normalisation.
_NONCHARACTERS = tuple(chr(code) for code in range(0xFDD0, 0xFDF0))


class Prompts:
    """Renders and tokenises for one checkpoint.

    Every control token starts with ``<``. So each ``<`` of a client's text is swapped for a character found in none of
    the messages, the template renders, the text is cut at the control tokens - which only the template can have
    written - and the pieces between are tokenised by a tokenizer that knows no control token, with ``<`` put back.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._control_ids = frozenset(checkpoint.control.values())
        tokens = sorted(checkpoint.control, key=len, reverse=True)
        self._cut = re.compile(f"({'|'.join(map(re.escape, tokens))})") if tokens else None
        self.opens_thought = self._opens_thought()

    async def encode(self, messages: Sequence[Message], limit: int = 0) -> list[int]:
        """Token ids of the prompt. Long prompts are tokenised in a thread, and one that is far longer than ``limit``
        tokens not to its end. Raises InvalidRequest, ContextLengthExceeded."""
        if sum(len(message.content) for message in messages) <= INLINE_CHARACTERS:
            return self.encode_now(messages)
        loop = asyncio.get_running_loop()
        if limit:
            await loop.run_in_executor(_THREADS, self._far_too_long, messages, limit)
        return await loop.run_in_executor(_THREADS, self.encode_now, messages)

    def encode_now(self, messages: Sequence[Message]) -> list[int]:
        contents = [_shown(message) for message in messages]
        mask = next((c for c in _NONCHARACTERS if not any(c in text for text in contents)), None)
        if mask is None:
            raise InvalidRequest("messages: use fewer of the noncharacters U+FDD0 to U+FDEF", field="messages")
        masked = [
            {"role": message.role, "content": text.replace("<", mask)}
            for message, text in zip(messages, contents, strict=True)
        ]
        return self._tokenise(self._checkpoint.render(masked), mask)

    def _far_too_long(self, messages: Sequence[Message], limit: int) -> None:
        longest = max((_shown(message) for message in messages), key=len)
        if len(longest) <= SAMPLE_CHARACTERS * limit:
            return
        found = len(self._checkpoint.plain.encode(longest[: SAMPLE_CHARACTERS * limit], add_special_tokens=False).ids)
        if found > 2 * limit:
            raise ContextLengthExceeded(
                f"the context holds {limit} tokens, and the first {SAMPLE_CHARACTERS * limit} of a message's "
                f"{len(longest)} characters are {found}: shorten the messages",
                field="messages",
            )

    def _tokenise(self, text: str, mask: str) -> list[int]:
        ids: list[int] = []
        for number, piece in enumerate(self._cut.split(text) if self._cut else (text,)):
            if number % 2:  # re.split puts what matched at the odd places
                ids.append(self._checkpoint.control[piece])
            elif piece:
                plain = self._checkpoint.plain.encode(piece.replace(mask, "<"), add_special_tokens=False).ids
                if not self._control_ids.isdisjoint(plain):
                    raise InvalidRequest("messages: the text spells a control token", field="messages")
                ids += plain
        return ids

    def _opens_thought(self) -> bool:
        """Whether the template ends inside a thought, as R1's does with ``<think>\\n``."""
        ids = self.encode_now([Message("user", "")])
        tags = [i for i in ids if i in (self._checkpoint.think_id, self._checkpoint.think_end_id)]
        return bool(tags) and tags[-1] == self._checkpoint.think_id


def _shown(message: Message) -> str:
    """What the model sees of a message: of its own earlier ones the answer only, as R1 was trained."""
    return message.content.split(THINK_END)[-1] if message.role == "assistant" else message.content
