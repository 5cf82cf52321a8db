"""What a step brought, as the engine core sent it: token ids, without vLLM's way to text and to a stream a request.

vLLM's ``OutputProcessor`` makes of each request's share of a step an object for a waiting task, with text, log
probabilities and statistics: a quarter of what a token costs the replica. Frames need the ids alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Output = tuple[str, Any]  # the id that add_request was given, and an ``EngineCoreOutput``
StepHook = Callable[[Sequence[Output], Any], None]


def token_engine(on_step: StepHook, *, observed: bool) -> tuple[type[Any], type[Any]]:
    """``AsyncLLM`` and a stat logger for it which together call ``on_step(outputs, scheduler_stats)`` after each step.

    ``observed``: somebody reads vLLM's own metrics or spans, so its ``OutputProcessor`` works beside.
    """
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.metrics.loggers import StatLoggerBase

    produced: list[Output] = []  # in the step under way

    class TokenEngine(AsyncLLM):  # type: ignore[misc]
        output_processor: Any

        def _run_output_handler(self) -> None:
            if self.output_handler is None:  # it takes hold of the processor when it begins
                tracing = self.output_processor.tracing_enabled
                self.output_processor = token_processor(produced, observed=observed, tracing=tracing)
            super()._run_output_handler()

    class StepLogger(StatLoggerBase):  # type: ignore[misc]
        """vLLM's plug-in point for statistics is also the one place that sees the end of every step."""

        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            pass

        def record(self, scheduler_stats: Any, *_: Any, **__: Any) -> None:
            outputs = produced.copy()
            produced.clear()
            on_step(outputs, scheduler_stats)

        def log_engine_initialized(self) -> None:
            pass

    return TokenEngine, StepLogger


def token_processor(produced: list[Output], *, observed: bool, tracing: bool = False) -> Any:
    """An ``OutputProcessor`` that appends what the engine core sends to ``produced``."""
    from vllm.v1.engine.output_processor import OutputProcessor, OutputProcessorOutput

    class TokenProcessor(OutputProcessor):  # type: ignore[misc]
        """Knows of a request whether it still runs, and nothing else."""

        def add_request(self, request: Any, prompt: Any, *_: Any, **__: Any) -> None:
            super().add_request(request, prompt)  # without a queue: nobody would read it

        def process_outputs(
            self, engine_core_outputs: Any, timestamp: Any = None, iteration_stats: Any = None, **more: Any
        ) -> Any:
            states = self.request_states
            for output in engine_core_outputs:
                state = states.get(output.request_id)
                if state is None:
                    continue  # aborted meanwhile
                produced.append((state.external_req_id, output))
                if output.finish_reason is not None and not observed:
                    self._finish_request(state)
            if observed:
                super().process_outputs(engine_core_outputs, timestamp, iteration_stats, **more)
            return OutputProcessorOutput([], [])

        def propagate_error(self, e: Exception) -> None:
            """The output handler's end says it to all."""

    return TokenProcessor(None, log_stats=observed, tracing_enabled=tracing)
