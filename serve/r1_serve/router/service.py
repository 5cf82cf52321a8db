"""From a checked request to a running call: the path both doors share. No HTTP and no gRPC in here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Sequence

from r1_cluster.routing import Policy
from r1_cluster.routing.admission import Arrival
from r1_cluster.routing.budget import Asked, Budget, Effort
from r1_cluster.routing.quota import Accounts

from r1_serve.errors import (
    Cancelled,
    ContextLengthExceeded,
    FleetSaturated,
    InvalidRequest,
    NoWorkers,
    R1Error,
    RouterStopping,
)
from r1_serve.protos import fleet_pb2 as pb
from r1_serve.router.call import Call
from r1_serve.router.choice import Choice
from r1_serve.router.desk import Desk
from r1_serve.router.generation import Generation
from r1_serve.router.limits import ThoughtLimit, enforced
from r1_serve.router.metrics import NO_MODEL, Metrics
from r1_serve.router.migrations import Migrations
from r1_serve.router.models import Catalog, ServedModel
from r1_serve.router.pace import Pace
from r1_serve.router.ranks import Rank, Ranks
from r1_serve.router.request import ChatRequest
from r1_serve.router.sharing import Sharing
from r1_serve.router.slo import Slo
from r1_serve.router.tenants import TenantsFile
from r1_serve.settings import RouterSettings
from r1_serve.tracing import Tracing

logger = logging.getLogger(__name__)

_RETRY_S = 1.0  # what a client is told to wait for a worker


class Service:
    """Opens calls: whose it is, normalise, tokenise, have it admitted, submit each choice to its rank."""

    def __init__(
        self,
        catalog: Catalog,
        ranks: Ranks,
        policy: Policy,
        metrics: Metrics,
        settings: RouterSettings,
        clock: Callable[[], float] = time.monotonic,
        tracing: Tracing | None = None,
    ) -> None:
        self.catalog = catalog
        self.ranks = ranks
        self.metrics = metrics
        self.settings = settings
        self.stopping = False
        self.calls: set[Call] = set()
        self.pace = Pace()
        self._idle = asyncio.Event()  # set when the last call of a stopping router ends
        self.tenants = TenantsFile(settings.tenants, clock)
        self.router_id = uuid.uuid4().hex
        accounts = Accounts(self.router_id, clock())
        self.desk = Desk(catalog, ranks, policy, clock, accounts)
        self.sharing = Sharing(accounts, self.desk.admissions, ranks, clock, self.desk.look_again)
        self._clock = clock
        self._tracing = tracing
        self.migrations = Migrations(self._move, metrics, clock, settings.resume_wait_s)
        self.desk.begun_first = self.migrations.look
        self._awaited = set(catalog.models)  # had no whole gang yet
        self._slo = {name: Slo(settings.slo_first_answer_s, clock) for name in catalog.models}
        for name in catalog.models:
            metrics.of(name)  # its series are there from the start
            for met in ("true", "false"):
                metrics.slo.labels(name, met)
        for plan in catalog.plans.values():
            for how in ("left", "lost"):
                metrics.detached.labels(plan.model.name, plan.name, how)

    @property
    def ready(self) -> bool:
        """Whether a model has a whole gang, and since the start every one has had: a router that has just begun waits
        for all fleets, and one fleet that ends does not take the others' clients with it."""
        self._awaited = {name for name in self._awaited if not self.ranks.ready(name)}
        return not (self.stopping or self._awaited) and any(map(self.ranks.ready, self.catalog.models))

    async def open(
        self,
        request: ChatRequest,
        request_id: str,
        timeout_s: float | None = None,
        key: str | None = None,
        traceparent: str | None = None,
    ) -> Call:
        """Let ``request`` in; it ends after ``timeout_s`` or the settings' limit, whichever is less. ``key`` is the
        client's API key, ``traceparent`` its W3C trace context. Raises R1Error."""
        if self.stopping:
            raise self.refused(RouterStopping("this router is stopping: send the request to another", retry_after=1.0))
        try:
            tenant = self.tenants.of_key(key)
            model = self.catalog.resolve(request.model)
        except R1Error as e:
            raise self.refused(e) from None
        limit = self.settings.request_timeout_s
        call = Call(
            request_id,
            request,
            model,
            tenant,
            timeout_s=limit if timeout_s is None else min(limit, timeout_s),
            created=int(time.time()),
            clock=self._clock,
            on_end=self._ended,
        )
        self.calls.add(call)
        if self._tracing is not None:
            call.trace = self._tracing.chat(call, traceparent)
        try:
            await self._start(call)
        except R1Error as e:
            call.fail(e)
            raise
        except BaseException:
            call.cancel()
            raise
        return call

    def slo(self, model: str) -> Slo:
        return self._slo[model]

    async def count(self, request: ChatRequest, key: str | None = None) -> int:
        """Tokens of the request's prompt. Raises R1Error."""
        self.tenants.of_key(key)
        model = self.catalog.resolve(request.model)
        return len(await model.prompts.encode(request.messages, model.max_model_len))

    async def drain(self, timeout_s: float) -> None:
        """Refuse new calls, give running ones ``timeout_s``, end the rest with RouterStopping."""
        self.stopping = True
        if self.calls:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._idle.wait()
        for call in list(self.calls):
            call.fail(RouterStopping("this router stopped: send the request to another", retry_after=1.0))

    def refused(self, error: R1Error) -> R1Error:
        """Count a request that never became a call; returns the error, to be raised."""
        self.metrics.outcome(NO_MODEL, error)
        return error

    async def _start(self, call: Call) -> None:
        request, model, tenant = call.request, call.model, call.tenant
        prompt = await model.prompts.encode(request.messages, model.max_model_len)
        sampling = _sampling(request, model, len(prompt))
        asked = Asked(request.thinking_token_budget, request.reasoning_effort)
        if not model.closing_ids and (asked.tokens is not None or asked.effort not in (None, Effort.NONE)):
            field = "thinking_token_budget" if asked.effort is None else "reasoning_effort"
            raise InvalidRequest(f"{model.name} does not think: leave it out", field=field)
        if not self.ranks.ready(model.name):
            await self.ranks.wait_for(model.name, self.settings.worker_wait_s)
        if call.error is not None:  # its deadline passed, or the router stopped, meanwhile
            raise call.error
        if not self.ranks.ready(model.name):
            raise NoWorkers(f"no worker serves {model.name} now: retry, or see /ready", retry_after=_RETRY_S)
        arrival = Arrival(
            tenant,
            model.name,
            len(prompt),
            sampling.max_tokens,
            asked=asked,
            n=request.n,
            deadline=call.deadline,
            opens_thought=model.opens_thought,
            chain=self.desk.chain(model, prompt, tenant.cache_salt),
        )
        call.prompt_tokens = len(prompt)
        self.desk.admit(call, arrival, lambda ranks, budget: self._begin(call, prompt, sampling, ranks, budget))

    def _begin(
        self, call: Call, prompt: list[int], sampling: pb.Sampling, ranks: Sequence[Rank], budget: Budget
    ) -> None:
        """The call's turn has come."""
        request, model = call.request, call.model
        metrics = self.metrics.of(model.name, call.tenant.name)
        tokens, effort = request.thinking_token_budget, request.reasoning_effort
        if tokens is None and effort is not None:
            tokens = model.budget_rules.of_effort(effort)
        call.budget = enforced(tokens, budget, sampling.max_tokens, len(model.closing_ids), effort)
        if logger.isEnabledFor(logging.DEBUG):
            told = {"request_id": call.request_id}
            logger.debug("request %s: budget %s; %s", call.request_id, budget.explain(), call.route, extra=told)
        if call.trace is not None:
            call.trace.begun()
        for index, rank in enumerate(ranks):
            choice = Choice(model.vocabulary, thinking=model.opens_thought, stop=request.stop)
            own = pb.Sampling()
            own.CopyFrom(sampling)
            if request.seed is not None:
                own.seed = _wrapped(request.seed + index)  # else all choices would be the same
            limit = ThoughtLimit(call.budget.applied, guard=request.loop_guard, closing_ids=model.closing_ids)
            salt = call.tenant.cache_salt
            generation = Generation(call, index, prompt, own, choice, metrics, self.migrations, limit, salt)
            call.generations.append(generation)
            generation.start(rank)

    def _move(self, generation: Generation, avoid: Rank | None) -> Rank:
        return self.desk.move(generation.call, generation.index, avoid)

    def _ended(self, call: Call, error: R1Error | None) -> None:
        self.calls.discard(call)
        self.desk.ended(call)
        if self.stopping and not self.calls:
            self._idle.set()
        if call.trace is not None:
            call.trace.ended(error)
        name = call.model.name
        self.metrics.outcome(name, error)
        met = in_time(call, error, self.settings.slo_first_answer_s)
        if met is not None:
            self._slo[name].count(met)
            self.metrics.slo.labels(name, str(met).lower()).inc()
        if call.generations:
            usage = call.usage()
            self.metrics.of(name, call.tenant.name).request(usage)
            logger.info(
                "request %s: %s of %s, %d prompt, %d reasoning and %d answer tokens in %.2f s",
                call.request_id,
                error.reason if error else "ok",
                name,
                usage.prompt_tokens,
                usage.reasoning_tokens,
                usage.answer_tokens,
                usage.total_seconds,
                extra={
                    "request_id": call.request_id,
                    **({"trace_id": call.trace.trace_id} if call.trace is not None else {}),
                    "model": name,
                    "tenant": call.tenant.name,
                    "outcome": error.reason if error else "ok",
                    "prompt_tokens": usage.prompt_tokens,
                    "reasoning_tokens": usage.reasoning_tokens,
                    "answer_tokens": usage.answer_tokens,
                    "seconds": round(usage.total_seconds, 3),
                },
            )


def in_time(call: Call, error: R1Error | None, within_s: float) -> bool | None:
    """Whether the answer began within ``within_s`` seconds; None for what says nothing of the fleet: the client's own
    faults and limits, clients that left before, and thoughts that ``max_tokens`` ended."""
    first = call.usage().time_to_first_answer_token_seconds if call.generations else 0.0
    if first > 0:
        return first <= within_s
    if error is None or (error.http_status < 500 and not isinstance(error, FleetSaturated)):
        waited = (call.ended_at or call.clock()) - call.started_at
        return False if isinstance(error, Cancelled) and waited > within_s else None
    return False


def _sampling(request: ChatRequest, model: ServedModel, prompt_tokens: int) -> pb.Sampling:
    """The request's sampling with the checkpoint's defaults, and max_tokens. Raises InvalidRequest,
    ContextLengthExceeded."""
    room = model.max_model_len - prompt_tokens
    if room < 1 or (request.max_tokens or 0) > room:
        asked = f" and max_tokens {request.max_tokens}" if request.max_tokens else ""
        raise ContextLengthExceeded(
            f"{model.name} holds {model.max_model_len} tokens: the prompt's {prompt_tokens}{asked} do not fit, "
            + (f"at most {room} are left for max_tokens" if room > 0 else "shorten the messages"),
            field="messages" if room < 1 else "max_tokens",
        )
    max_tokens = request.max_tokens or min(model.default_max_tokens, room)
    if request.min_tokens > max_tokens:
        raise InvalidRequest(
            f"min_tokens {request.min_tokens} is more than max_tokens {max_tokens}: ask for fewer, or give max_tokens",
            field="min_tokens",
        )
    defaults = model.checkpoint.sampling
    if model.drafts and request.min_p:
        raise InvalidRequest(
            f"{model.name} drafts tokens, which vLLM does not do with min_p: leave min_p out", field="min_p"
        )

    def given(value: float | None, default: float) -> float:
        return default if value is None else value

    return pb.Sampling(
        temperature=given(request.temperature, defaults.temperature),
        top_p=given(request.top_p, defaults.top_p),
        top_k=defaults.top_k if request.top_k is None else request.top_k,
        min_p=given(request.min_p, defaults.min_p),
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        repetition_penalty=given(request.repetition_penalty, defaults.repetition_penalty),
        max_tokens=max_tokens,
        min_tokens=request.min_tokens,
        stop_token_ids=() if request.ignore_eos else model.checkpoint.eos_ids,
        ignore_eos=request.ignore_eos,
    )


def _wrapped(seed: int) -> int:
    """``seed`` within a signed 64-bit integer."""
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63)
