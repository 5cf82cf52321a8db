"""One choice on its rank: submitted, read as tokens come, aborted or finished; resubmitted when the rank is lost or
when its thought has to be closed.

Both resubmissions are the same: prompt and all tokens so far become the prompt, with what is left of ``max_tokens``.
The reading side - decoder, split, stop strings, counts - stays here and is never rebuilt, so no token can be lost or
shown twice.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

from r1_serve.errors import EngineRejected, R1Error, WorkerLost
from r1_serve.protos import fleet_pb2 as pb
from r1_serve.router.choice import Choice, Piece
from r1_serve.router.limits import ThoughtLimit
from r1_serve.router.metrics import ModelMetrics

if TYPE_CHECKING:
    from r1_serve.router.call import Call
    from r1_serve.router.migrations import Migrations
    from r1_serve.router.ranks import Rank

_REASONS = {pb.FINISH_STOP: "stop", pb.FINISH_LENGTH: "length"}

# A request that so many ranks died with is not tried on another, whatever it got from them.
MAX_DEATHS = 8


class Generation:
    """Reads one choice's deltas into its call. Keeps all its token ids, 4 bytes each, to go on from."""

    def __init__(
        self,
        call: Call,
        index: int,
        prompt: list[int],
        sampling: pb.Sampling,
        choice: Choice,
        metrics: ModelMetrics,
        migrations: Migrations,
        limit: ThoughtLimit,
        cache_salt: str = "",
    ) -> None:
        self.call = call
        self.index = index
        self.choice = choice
        self.limit = limit
        self.cached_tokens = 0
        self.queue_seconds = 0.0
        self.first_token_at: float | None = None
        self.first_answer_at: float | None = None
        self.thought_ended_at: float | None = None
        self.done = False
        self.finish_reason = ""
        self._last_token_at = 0.0
        self._started_at = call.clock()
        self._prompt = prompt
        self._sampling = sampling
        self._token_ids = array("I")
        self._metrics = metrics
        self._migrations = migrations
        self._cache_salt = cache_salt
        self._rank: Rank | None = None
        self._request_id = 0
        self._begun_at = 0  # tokens at the last submission
        self._seated = False
        self._deaths = 0
        self.suspect = False  # of having killed a rank: see Migrations

    @property
    def rank(self) -> Rank | None:
        """Where it runs, or ran last."""
        return self._rank

    @property
    def remaining(self) -> int:
        """What is left of max_tokens."""
        return int(self._sampling.max_tokens) - len(self._token_ids)

    @property
    def prompt_tokens(self) -> int:
        """Of the next submission: tokens so far included."""
        return len(self._prompt) + len(self._token_ids)

    @property
    def thinking_seconds(self) -> float:
        """From the first token to the end of the thought; 0 without one."""
        if self.first_token_at is None or self.choice.reasoning_tokens == 0:
            return 0.0
        return (self._last_token_at if self.thought_ended_at is None else self.thought_ended_at) - self.first_token_at

    def silent_s(self) -> float:
        """Seconds since its last token, or since it began."""
        return self.call.clock() - max(self._last_token_at, self._started_at)

    def start(self, rank: Rank) -> None:
        """Begin on ``rank``, or go on there."""
        if self._close_if_due():
            self.thought_ended_at = self.call.clock()
        self._rank = rank
        self._seated = rank.has_seat
        self._begun_at = len(self._token_ids)
        self._request_id = rank.submit(self)

    def submission(self, request_id: int) -> pb.Submit:
        """What a rank must be sent to begin, or to go on after the tokens so far."""
        sampling = pb.Sampling()
        sampling.CopyFrom(self._sampling)
        so_far = len(self._token_ids)
        sampling.max_tokens -= so_far
        sampling.min_tokens = max(0, sampling.min_tokens - so_far)
        if so_far and sampling.HasField("seed"):
            sampling.seed = reseeded(sampling.seed, so_far)
        return pb.Submit(
            request_id=request_id,
            prompt_token_ids=[*self._prompt, *self._token_ids],
            sampling=sampling,
            cache_salt=self._cache_salt,
            traceparent=self.call.trace.traceparent if self.call.trace is not None else "",
        )

    def abort(self) -> None:
        """Tell the rank to stop. Harmless when it has."""
        if not self.done:
            self.done = True
            if self._rank is not None:
                self._rank.abort(self._request_id)

    def fail(self, error: R1Error) -> None:
        self.done = True
        self.call.fail(error)

    def lost(self, error: WorkerLost, *, blamed: bool, elsewhere: Rank | None = None) -> None:
        """The rank is gone or gives the work back: go on elsewhere with what is here. ``elsewhere``: at once and not on
        this rank, or not at all."""
        if self.done:
            return
        reason = self._complete()
        if reason is not None:
            self._finish(reason, running=False)
            return
        if blamed:
            self._deaths += 1
            # Without a seat it was waiting in the engine, and has not been computed.
            self.suspect = self._seated and len(self._token_ids) == self._begun_at
        if self._deaths >= MAX_DEATHS:
            self._migrations.convict(self)
        else:
            self._migrations.resume(self, error, avoid=elsewhere)

    def on_delta(self, delta: pb.Delta) -> bool:
        """Read what a step brought; return whether it was the last of this submission."""
        if self.done:
            return True
        finish = delta.finish
        token_ids = delta.token_ids[:]  # a list: protobuf's own container costs microseconds each time it is read
        if token_ids and self.first_token_at is None:
            self.cached_tokens = delta.cached_tokens
            self.queue_seconds = delta.queue_time_us / 1e6
        if token_ids and self._read(token_ids):
            self._go_on(running=finish == pb.FINISH_NONE)
            return True
        if finish == pb.FINISH_NONE and not self.choice.stopped:
            return False
        if finish in (pb.FINISH_ERROR, pb.FINISH_ABORT):
            leaving = self._rank is not None and self._rank.draining
            error = WorkerLost(f"the engine stopped: {delta.error or 'no reason given'}; send it again", retry_after=1)
            # A rank that stays has failed this request only, and would again.
            elsewhere = None if leaving else self._rank
            self.lost(error, blamed=not (leaving and finish == pb.FINISH_ABORT), elsewhere=elsewhere)
        elif finish == pb.FINISH_REJECTED:
            self.fail(EngineRejected(f"the engine refused the request: {delta.error or 'no reason given'}"))
        else:
            self._finish(_REASONS.get(finish, "stop"), running=finish == pb.FINISH_NONE)
        return True

    def on_token(self, token_id: int) -> bool:
        """As ``on_delta``, of one token that is not the submission's last: where most of the router's time goes."""
        if self.done:
            return True
        choice = self.choice
        text = None if self.suspect else choice.plain(token_id)
        if text is not None:  # so it is not the first, neither of all nor of the answer
            now = self.call.clock()
            self._metrics.inter_token_latency.observe(now - self._last_token_at)
            self._last_token_at = now
            self._token_ids.append(token_id)
            self.call.push(self.index, choice.kind, text)
            if choice.thinking and self._close_if_due():
                self._go_on(running=True)
                return True
            return False
        return self.on_delta(pb.Delta(token_ids=[token_id]))

    def _read(self, token_ids: list[int]) -> bool:
        """Whether the thought was closed: then the engine has to go on from what is here."""
        now, choice = self.call.clock(), self.choice
        if self.first_token_at is None:
            self.first_token_at = now
            self._metrics.first_token(now - self.call.started_at, self.queue_seconds)
        else:
            self._metrics.inter_token_latency.observe((now - self._last_token_at) / len(token_ids))
        self._last_token_at = now
        if self.suspect:
            self.suspect = False
            self._migrations.cleared(self)
        was_thinking = choice.thinking
        closed = self._take(token_ids)
        if was_thinking and not choice.thinking:
            self.thought_ended_at = now
        if self.first_answer_at is None and choice.answer_tokens:
            self.first_answer_at = now
            self._metrics.time_to_first_answer_token.observe(now - self.call.started_at)
        return closed

    def _take(self, token_ids: list[int]) -> bool:
        """One by one while a thought may have to be closed between two of them: how tokens are cut into deltas must
        not matter."""
        choice = self.choice
        if len(token_ids) > 1 and self.limit.next_check is not None:
            return any(self._take([token_id]) for token_id in token_ids)
        self._token_ids.extend(token_ids)
        self._push(choice.feed(token_ids))
        return choice.thinking and self._close_if_due()

    def _close_if_due(self) -> bool:
        """Close the thought where its budget is spent or it runs in a loop, as if the model had written the end."""
        limit, choice = self.limit, self.choice
        if limit.next_check is None or not choice.thinking or choice.reasoning_tokens < limit.next_check:
            return False
        cause = limit.check(choice.reasoning_tokens, self._token_ids)
        if cause is None or self.remaining <= len(limit.closing_ids):
            return False
        self._token_ids.extend(limit.closing_ids)
        self._push(choice.close(limit.closing_ids, cause))
        self._metrics.closed(cause)
        return True

    def _go_on(self, *, running: bool) -> None:
        """Resubmit after the thought was closed, where the prefix is warm if that rank stays."""
        rank = self._rank
        if running and rank is not None:
            rank.abort(self._request_id)
        if rank is None or rank.draining:
            self._migrations.resume(self, WorkerLost("its worker is leaving; send it again", retry_after=1))
        else:
            self.start(rank)

    def _complete(self) -> str | None:
        """The finish reason where nothing is left to generate, though the engine could not say so any more."""
        if self.remaining <= 0:
            return "length"
        last = self._token_ids[-1] if self._token_ids else None
        return "stop" if last in self._sampling.stop_token_ids and not self._sampling.ignore_eos else None

    def _push(self, pieces: Sequence[Piece]) -> None:
        for kind, text in pieces:
            self.call.push(self.index, kind, text)

    def _finish(self, reason: str, *, running: bool) -> None:
        """The last token is here, or a stop string was met while the engine was still ``running``."""
        if self.choice.stopped:
            reason = "stop"
        if running:
            self.abort()
        self.done = True
        self.finish_reason = reason
        self._push(self.choice.end())
        self._metrics.choice(self.choice.thought, reason, self.thinking_seconds, self.choice.reasoning_tokens)
        self.call.finish(self.index, reason, self.choice.thought)


def reseeded(seed: int, so_far: int) -> int:
    """A seed for going on after ``so_far`` tokens: the engine's generator starts anew, and must not repeat the numbers
    it has given. The same for the same request interrupted at the same token."""
    mixed = (seed ^ (so_far * 0x9E3779B97F4A7C15)) * 0xBF58476D1CE4E5B9 % (1 << 64)
    return mixed - (1 << 63)
