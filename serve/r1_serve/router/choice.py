"""One choice's state: token ids in, pieces of thinking and answer out, every id counted once. No I/O, no clock.

The thought ends at the token ``</think>``, never at text that looks like it. A byte-level vocabulary gives every id
fixed bytes, so detokenising is a table and an incremental UTF-8 decoder: exact, and constant work a token.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from r1_serve.checkpoint import Checkpoint
from r1_serve.router.stop import StopStrings

_Utf8 = codecs.getincrementaldecoder("utf-8")


class Kind(Enum):
    THINKING = "thinking"
    ANSWER = "answer"


Piece = tuple[Kind, str]


class Thought(Enum):
    """How a choice's thought went."""

    COMPLETE = "complete"
    EMPTY = "empty"  # closed without text
    UNTERMINATED = "unterminated"  # the model stopped, or was stopped, inside it
    NONE = "none"  # never opened
    BUDGET = "budget"  # closed by the router: its budget was spent
    LOOP = "loop"  # closed by the router: it repeated itself without end


@dataclass(frozen=True)
class Vocabulary:
    """What reading token ids takes. ``control`` ids have no text. ``plain``: texts of ids met so far that are whole
    characters and do not end a line."""

    token_bytes: Sequence[bytes]
    control: frozenset[int]
    think_id: int | None
    think_end_id: int | None
    plain: dict[int, str] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Vocabulary:
        control = frozenset(checkpoint.control.values())
        return cls(checkpoint.token_bytes, control, checkpoint.think_id, checkpoint.think_end_id)


class Choice:
    """Feed ids until :attr:`stopped` or the engine's last, then :meth:`end`.

    ``completion_tokens`` counts all ids as the engine does, ``reasoning_tokens`` those of the thought without its tags,
    ``answer_tokens`` those of the answer without end-of-sequence and other control tokens. Newlines around the tags are
    not shown but counted where they stand.
    """

    __slots__ = (
        "_begun",
        "_held",
        "_open",
        "_out",
        "_sealed",
        "_stops",
        "_utf8",
        "_vocabulary",
        "answer_tokens",
        "completion_tokens",
        "reasoning_tokens",
        "stopped",
        "thinking",
        "thought",
    )

    def __init__(self, vocabulary: Vocabulary, *, thinking: bool, stop: tuple[str, ...] = ()) -> None:
        """``thinking``: whether the prompt ends inside a thought."""
        self._vocabulary = vocabulary
        self._stops = StopStrings(stop)
        self._out: list[Piece] = []
        self.stopped = self._sealed = False
        self.completion_tokens = self.reasoning_tokens = self.answer_tokens = 0
        self.thought = Thought.UNTERMINATED if thinking else Thought.NONE
        self._enter(thinking)

    @property
    def stop_string(self) -> str | None:
        """The one that was met."""
        return self._stops.met

    def standing(self) -> tuple[int, int, bool]:
        """As the KV forecast reads it: tokens, those of the answer, whether it thinks."""
        return self.completion_tokens, self.answer_tokens, self.thinking

    def feed(self, token_ids: Iterable[int]) -> list[Piece]:
        """What newly may be shown. Ids after a stop string are neither read nor counted."""
        for token_id in token_ids:
            text = self.plain(token_id)
            if text is not None:
                self._emit(text)
            elif self.stopped:
                break
            else:
                self._read(token_id)
        return self._take()

    def plain(self, token_id: int) -> str | None:
        """Read an id of which nothing has to be held back, most of all, and return its text, to be shown as
        :attr:`kind`. None: it was not read, feed it."""
        text = self._vocabulary.plain.get(token_id) if self._open else None
        if text is not None:
            self.completion_tokens += 1
            if self.thinking:
                self.reasoning_tokens += 1
            else:
                self.answer_tokens += 1
        return text

    @property
    def kind(self) -> Kind:
        """Of what is shown now."""
        return Kind.THINKING if self.thinking else Kind.ANSWER

    def end(self) -> list[Piece]:
        """What was held back, once no more ids come: half a character as U+FFFD, the start of a stop string."""
        if not self.stopped:
            self._show(self._utf8.decode(b"", True))
            rest = self._held if self.thinking else self._stops.flush()
            self._emit(rest)
        return self._take()

    def close(self, closing_ids: Iterable[int], cause: Thought) -> list[Piece]:
        """End the thought with ids that the model has not written. They count as if it had, and it cannot open another
        one."""
        pieces = self.feed(closing_ids)
        self.thought = cause
        self._sealed = True
        return pieces

    def _read(self, token_id: int) -> None:
        self.completion_tokens += 1
        vocabulary = self._vocabulary
        if token_id in vocabulary.control:
            self._steer(token_id)
        else:
            if self.thinking:
                self.reasoning_tokens += 1
            else:
                self.answer_tokens += 1
            # Engines can pick ids that only pad the vocabulary: they have no text.
            table, opened = vocabulary.token_bytes, self._open
            if text := self._utf8.decode(table[token_id] if token_id < len(table) else b""):
                self._show(text)
                if opened and self._open and text[-1] != "\n":
                    vocabulary.plain[token_id] = text
        self._look()

    def _look(self) -> None:
        """Whether an id's text can be shown as it is: nothing is held back, neither bytes nor newlines nor the start of
        a stop string."""
        held = self._held or self._utf8.getstate()[0] or (self._stops and not self.thinking)
        self._open = self._begun and not (held or self.stopped)

    def _steer(self, token_id: int) -> None:
        if token_id == self._vocabulary.think_end_id and self.thinking:
            self._show(self._utf8.decode(b"", True))
            if self.thought is not Thought.COMPLETE:
                self.thought = Thought.COMPLETE if self._begun else Thought.EMPTY
            self._enter(False)
        elif token_id == self._vocabulary.think_id and not (self.thinking or self._begun or self._sealed):
            # Emitted by the model itself: templates of R1's first weeks and R1-Zero do not open the thought.
            if self.thought is Thought.NONE:
                self.thought = Thought.UNTERMINATED
            self._enter(True)

    def _enter(self, thinking: bool) -> None:
        self.thinking = thinking
        self._utf8 = _Utf8(errors="replace")
        self._begun = False  # whether anything of this part was shown
        self._open = False  # see _look
        self._held: str = ""

    def _show(self, text: str) -> None:
        if not self._begun:
            text = text.lstrip("\n")
            if not text:
                return
            self._begun = True
        if self.thinking:
            # The newline before </think> is the format's, not the thought's: it waits for what comes next.
            text = self._held + text
            body = text.rstrip("\n")
            self._held = text[len(body) :]
            self._emit(body)
        else:
            body, self.stopped = self._stops.feed(text)
            self._emit(body)

    def _emit(self, text: str) -> None:
        if not text:
            return
        kind = self.kind
        if self._out and self._out[-1][0] is kind:
            text = self._out.pop()[1] + text
        self._out.append((kind, text))

    def _take(self) -> list[Piece]:
        out, self._out = self._out, []
        return out
