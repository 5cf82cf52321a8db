"""OpenTelemetry traces, off unless ``R1_OTLP_ENDPOINT`` is set: router → worker → engine, one trace a request.

``chat MODEL`` is the router's span, ``queue`` below it the wait for a turn; each submission to a rank is a ``generate``
of that rank, and vLLM's own ``llm_request`` lies below it. The context goes down the fleet stream, in
``Submit.traceparent``. Attributes follow OpenTelemetry's GenAI semantic conventions (experimental); those of our own
start with ``r1.``. Counts, times, names and reasons: never text of a prompt, a thought or an answer.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from r1_serve.errors import R1Error, StartupError
from r1_serve.protos import fleet_pb2 as pb
from r1_serve.settings import TraceSettings

if TYPE_CHECKING:
    from r1_serve.router.call import Call

# The semantic conventions' package is still experimental and moves its constants: the names are written out.
_OPERATION, _PROVIDER, _MODEL = "gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model"
_HEADER = "traceparent"


def tracing(settings: TraceSettings, service: str, exporter: Any = None) -> Tracing | None:
    """None where it is off. ``exporter`` is a test's instead of OTLP's. Raises StartupError without the packages."""
    if settings.otlp_endpoint is None and exporter is None:
        return None
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

        if exporter is None:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    except ImportError as e:
        raise StartupError("R1_OTLP_ENDPOINT is set: install r1-serve[traces], or unset it") from e
    sampler = ParentBased(TraceIdRatioBased(settings.trace_share))
    provider = TracerProvider(resource=Resource.create({"service.name": service}), sampler=sampler)
    if exporter is not None:
        provider.add_span_processor(SimpleSpanProcessor(exporter))
    else:
        endpoint = str(settings.otlp_endpoint)
        secure = endpoint.startswith("https://")
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, insecure=not secure)))
    return Tracing(provider)


class Tracing:
    """Makes the spans of one process."""

    def __init__(self, provider: Any) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("r1_serve")
        self._trace = trace
        self._w3c = TraceContextTextMapPropagator()

    def chat(self, call: Call, traceparent: str | None) -> ChatTrace:
        """The router's span of a call that has just come, below the client's own if it sent a ``traceparent``."""
        request = call.request
        attributes = {
            _OPERATION: "chat",
            _PROVIDER: "r1-serve",
            _MODEL: request.model or call.model.name,
            "gen_ai.response.model": call.model.name,
            "gen_ai.request.choice.count": request.n,
            "gen_ai.request.max_tokens": request.max_tokens,
            "gen_ai.request.temperature": request.temperature,
            "gen_ai.request.top_p": request.top_p,
            "r1.request_id": call.request_id,
            "r1.tenant": call.tenant.name,
        }
        began_ns = time.time_ns() - round((call.clock() - call.started_at) * 1e9)
        span = self._tracer.start_span(
            f"chat {call.model.name}",
            context=self._parent(traceparent),
            kind=self._trace.SpanKind.SERVER,
            attributes=_given(attributes),
            start_time=began_ns,
        )
        return ChatTrace(self, span, call, began_ns)

    def queue(self, below: Any) -> Any:
        return self._tracer.start_span("queue", context=self._trace.set_span_in_context(below))

    def generate(self, submit: pb.Submit, hello: pb.Hello | None) -> Any:
        """A rank's span of one submission; None where its router does not trace it."""
        if not submit.traceparent:
            return None
        attributes: dict[str, Any] = {
            _OPERATION: "text_completion",
            _PROVIDER: "r1-serve",
            "gen_ai.usage.input_tokens": len(submit.prompt_token_ids),
            "gen_ai.request.max_tokens": submit.sampling.max_tokens,
        }
        if hello is not None:
            attributes |= {
                _MODEL: hello.model,
                "r1.plan": hello.plan_name,
                "r1.worker_id": hello.worker_id,
                "r1.gang_id": hello.gang_id,
                "r1.rank": hello.rank,
            }
        return self._tracer.start_span(
            "generate",
            context=self._parent(submit.traceparent),
            kind=self._trace.SpanKind.SERVER,
            attributes=attributes,
        )

    def generated(self, span: Any, delta: pb.Delta, tokens: int) -> None:
        """The submission's last delta is on its way."""
        span.set_attribute("gen_ai.usage.output_tokens", tokens)
        reason = pb.FinishReason.Name(delta.finish).removeprefix("FINISH_").lower()
        span.set_attribute("gen_ai.response.finish_reasons", [reason])
        if delta.finish in (pb.FINISH_ERROR, pb.FINISH_REJECTED):
            self.failed(span, reason)
        span.end()

    def failed(self, span: Any, error_type: str) -> None:
        span.set_attribute("error.type", error_type)
        span.set_status(self._trace.Status(self._trace.StatusCode.ERROR))

    def traceparent(self, span: Any) -> str:
        carrier: dict[str, str] = {}
        self._w3c.inject(carrier, context=self._trace.set_span_in_context(span))
        return carrier.get(_HEADER, "")

    def stop(self) -> None:
        """Send what is still here."""
        self._provider.shutdown()

    def _parent(self, traceparent: str | None) -> Any:
        return self._w3c.extract({_HEADER: traceparent}) if traceparent else None


class ChatTrace:
    """The spans of one call in the router."""

    def __init__(self, tracing: Tracing, span: Any, call: Call, began_ns: int) -> None:
        self._tracing = tracing
        self._span = span
        self._call = call
        self._began_ns = began_ns  # unix time of the call's start
        self._queue: Any = tracing.queue(span)
        self.traceparent = tracing.traceparent(span)

    @property
    def trace_id(self) -> str:
        return f"{self._span.get_span_context().trace_id:032x}"

    def begun(self) -> None:
        """Its turn has come."""
        self._span.set_attribute("r1.route", self._call.route)
        self._queue.end()

    def ended(self, error: R1Error | None) -> None:
        call, span = self._call, self._span
        if self._queue.is_recording():
            self._queue.end()  # its turn never came
        if call.generations:
            self._tell_usage()
        if error is not None:
            self._tracing.failed(span, error.reason)
        span.end()

    def _tell_usage(self) -> None:
        call, usage = self._call, self._call.usage()
        reasons = [generation.finish_reason for generation in call.generations if generation.finish_reason]
        attributes = {
            "gen_ai.usage.input_tokens": usage.prompt_tokens,
            "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
            "gen_ai.usage.output_tokens": usage.completion_tokens,
            "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens,
            "gen_ai.response.finish_reasons": reasons or None,
            "gen_ai.response.time_to_first_chunk": usage.time_to_first_token_seconds or None,
            "r1.time_to_first_answer": usage.time_to_first_answer_token_seconds or None,
            "r1.thinking_budget": usage.thinking_budget.applied,
        }
        self._span.set_attributes(_given(attributes))
        for generation in call.generations:
            for name, at in (
                ("first token", generation.first_token_at),
                ("thought ended", generation.thought_ended_at),
            ):
                if at is not None:
                    when = self._began_ns + round((at - call.started_at) * 1e9)
                    self._span.add_event(name, {"choice": generation.index}, timestamp=when)


def _given(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}
