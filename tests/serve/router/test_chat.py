"""The openai SDK against the router, with a scripted worker behind it."""

from __future__ import annotations

from typing import Any

QUESTION: list[Any] = [{"role": "user", "content": "What is 2 + 2?"}]
EOS = "<｜end▁of▁sentence｜>"


async def test_an_answer_has_thinking_and_answer_apart(world: Any, says: Any) -> None:
    await world.worker(says(f"2 + 2 = 4\n</think>\n\nThe answer is 4.{EOS}"))
    done = await world.client.chat.completions.create(model="r1-nano", messages=QUESTION)
    message = done.choices[0].message
    assert message.content == "The answer is 4."
    assert message.reasoning_content == message.reasoning == "2 + 2 = 4"
    assert done.choices[0].finish_reason == "stop"
    assert done.model == "r1-nano"


async def test_a_stream_gives_the_same_text_in_pieces_and_ends_with_done(world: Any, says: Any) -> None:
    await world.worker(says(f"2 + 2 = 4\n</think>\n\nThe answer is 4.{EOS}"))
    stream = await world.client.chat.completions.create(
        model="deepseek-r1", messages=QUESTION, stream=True, stream_options={"include_usage": True}
    )
    thinking, answer, reasons, usage = "", "", [], None
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            thinking += getattr(choice.delta, "reasoning_content", None) or ""
            answer += choice.delta.content or ""
            reasons += [choice.finish_reason] if choice.finish_reason else []
    assert (thinking, answer, reasons) == ("2 + 2 = 4", "The answer is 4.", ["stop"])
    assert usage is not None
    assert usage.completion_tokens_details.reasoning_tokens > 0
