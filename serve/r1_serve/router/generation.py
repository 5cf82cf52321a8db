"""One choice on its rank: submitted, read as tokens come, aborted or finished."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from r1_serve.errors import EngineRejected, R1Error, WorkerLost
from r1_serve.protos import fleet_pb2 as pb
from r1_serve.router.choice import Choice
from r1_serve.router.metrics import ModelMetrics

if TYPE_CHECKING:
    from r1_serve.router.call import Call
    from r1_serve.router.ranks import Rank

_REASONS = {pb.FINISH_STOP: "stop", pb.FINISH_LENGTH: "length"}


class Generation:
    """Reads one choice's deltas into its call. Keeps all its token ids (4 bytes each): with them another rank could
    take over where this one stopped, see :meth:`submission`."""

    def __init__(
        self,
        call: Call,
        index: int,
        prompt: list[int],
        sampling: pb.Sampling,
        choice: Choice,
        metrics: ModelMetrics,
        cache_salt: str = "",
    ) -> None:
        self.call = call
        self.index = index
        self.choice = choice
        self.cached_tokens = 0
        self.queue_seconds = 0.0
        self.first_token_at: float | None = None
        self.first_answer_at: float | None = None
        self.thought_ended_at: float | None = None
        self._last_token_at = 0.0
        self._prompt = prompt
        self._sampling = sampling
        self._token_ids = array("I")
        self._metrics = metrics
        self._cache_salt = cache_salt
        self._rank: Rank | None = None
        self._request_id = 0
        self._done = False

    @property
    def thinking_seconds(self) -> float:
        """From the first token to the end of the thought; 0 without one."""
        if self.first_token_at is None or self.choice.reasoning_tokens == 0:
            return 0.0
        return (self._last_token_at if self.thought_ended_at is None else self.thought_ended_at) - self.first_token_at

    def start(self, rank: Rank) -> None:
        self._rank = rank
        self._request_id = rank.submit(self)

    def submission(self, request_id: int) -> pb.Submit:
        """What a rank must be sent to begin, or to go on after the tokens so far."""
        sampling = pb.Sampling()
        sampling.CopyFrom(self._sampling)
        sampling.max_tokens -= len(self._token_ids)
        return pb.Submit(
            request_id=request_id,
            prompt_token_ids=[*self._prompt, *self._token_ids],
            sampling=sampling,
            cache_salt=self._cache_salt,
        )

    def abort(self) -> None:
        """Tell the rank to stop. Harmless when it has."""
        if not self._done and self._rank is not None:
            self._done = True
            self._rank.abort(self._request_id)

    def fail(self, error: R1Error) -> None:
        self._done = True
        self.call.fail(error)

    def lost(self, error: WorkerLost) -> None:
        """The rank is gone. To resume elsewhere: start() on another rank; nothing else here would change."""
        self.fail(error)

    def on_delta(self, delta: pb.Delta) -> bool:
        """Read what a step brought; return whether it was the last of this generation."""
        if self._done:
            return True
        if delta.token_ids:
            self._read(delta)
        if delta.finish == pb.FINISH_NONE and not self.choice.stopped:
            return False
        if delta.finish in (pb.FINISH_ERROR, pb.FINISH_ABORT):
            self.lost(
                WorkerLost(f"the engine stopped: {delta.error or 'no reason given'}; send it again", retry_after=1.0)
            )
        elif delta.finish == pb.FINISH_REJECTED:
            self.fail(EngineRejected(f"the engine refused the request: {delta.error or 'no reason given'}"))
        else:
            self._finish(_REASONS.get(delta.finish, "stop"), running=delta.finish == pb.FINISH_NONE)
        return True

    def _read(self, delta: pb.Delta) -> None:
        now, choice = self.call.clock(), self.choice
        if self.first_token_at is None:
            self.first_token_at = now
            self.cached_tokens = delta.cached_tokens
            self.queue_seconds = delta.queue_time_us / 1e6
            self._metrics.first_token(now - self.call.started_at, self.queue_seconds)
        else:
            self._metrics.inter_token_latency.observe((now - self._last_token_at) / len(delta.token_ids))
        self._last_token_at = now
        self._token_ids.extend(delta.token_ids)
        was_thinking = choice.thinking
        for kind, text in choice.feed(delta.token_ids):
            self.call.push(self.index, kind, text)
        if was_thinking and not choice.thinking:
            self.thought_ended_at = now
        if self.first_answer_at is None and choice.answer_tokens:
            self.first_answer_at = now
            self._metrics.time_to_first_answer_token.observe(now - self.call.started_at)

    def _finish(self, reason: str, *, running: bool) -> None:
        """The last token is here, or a stop string was met while the engine was still ``running``."""
        if self.choice.stopped:
            reason = "stop"
        if running:
            self.abort()
        self._done = True
        for kind, text in self.choice.end():
            self.call.push(self.index, kind, text)
        self._metrics.choice(self.choice.thought, reason, self.thinking_seconds)
        self.call.finish(self.index, reason)
