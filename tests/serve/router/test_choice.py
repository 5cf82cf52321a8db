"""The thinking split, detokenisation and counts, on ids alone."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest
from r1_serve.checkpoint import Checkpoint
from r1_serve.router.choice import Choice, Kind, Thought, Vocabulary

EOS = "<｜end▁of▁sentence｜>"
Ids = Callable[[str], list[int]]


@pytest.fixture(scope="session")
def vocabulary(checkpoint: Checkpoint) -> Vocabulary:
    return Vocabulary.of(checkpoint)


def read(choice: Choice, token_ids: list[int], cuts: list[int] | None = None) -> tuple[str, str]:
    """Feed ``token_ids`` one by one, or cut at ``cuts``; return thinking and answer."""
    edges = [0, *(range(1, len(token_ids)) if cuts is None else cuts), len(token_ids)]
    pieces = [piece for a, b in itertools.pairwise(edges) for piece in choice.feed(token_ids[a:b])]
    pieces += choice.end()
    return (
        "".join(text for kind, text in pieces if kind is Kind.THINKING),
        "".join(text for kind, text in pieces if kind is Kind.ANSWER),
    )


# opened by the prompt, generated text, thinking, answer, how the thought went
CASES = {
    "prompt-opened": (True, f"a b\n</think>\n\nc d{EOS}", "a b", "c d", Thought.COMPLETE),
    "no newlines around the tags": (True, f"a b</think>c d{EOS}", "a b", "c d", Thought.COMPLETE),
    "missing </think>": (True, f"a b\n\nc d{EOS}", "a b\n\nc d", "", Thought.UNTERMINATED),
    "empty thought": (True, f"</think>\n\nc d{EOS}", "", "c d", Thought.EMPTY),
    "blank thought": (True, f"\n</think>\n\nc d{EOS}", "", "c d", Thought.EMPTY),
    "length stop inside thinking": (True, "a b\n", "a b\n", "", Thought.UNTERMINATED),
    "length stop before the first token of the answer": (True, "a</think>", "a", "", Thought.COMPLETE),
    "length stop inside the blank line": (True, "a</think>\n", "a", "", Thought.COMPLETE),
    "model opens the thought itself": (False, f"<think>\na b\n</think>\n\nc d{EOS}", "a b", "c d", Thought.COMPLETE),
    "model opens it again": (True, f"<think>\na b\n</think>\n\nc d{EOS}", "a b", "c d", Thought.COMPLETE),
    "model opens it and stops": (False, "<think>\na", "a", "", Thought.UNTERMINATED),
    "no thought at all": (False, f"c d{EOS}", "", "c d", Thought.NONE),
    "</think> without a thought": (False, f"c</think> d{EOS}", "", "c d", Thought.NONE),
    "<think> within the answer": (True, f"a</think>c<think> d{EOS}", "a", "c d", Thought.COMPLETE),
    "</think> twice": (True, f"a</think>\n</think>c{EOS}", "a", "c", Thought.COMPLETE),
    "a second thought before any answer": (True, f"a</think>\n<think>b</think>c{EOS}", "ab", "c", Thought.COMPLETE),
    "newlines inside both": (True, f"a\n\nb\n</think>\n\nc\n\nd\n{EOS}", "a\n\nb", "c\n\nd\n", Thought.COMPLETE),
    "other control tokens have no text": (
        True,
        f"a<｜User｜>b</think>c<｜Assistant｜><｜▁pad▁｜>d{EOS}",
        "ab",
        "cd",
        Thought.COMPLETE,
    ),
    "nothing": (True, "", "", "", Thought.UNTERMINATED),
    "only the end": (True, EOS, "", "", Thought.UNTERMINATED),
}


@pytest.mark.parametrize(("opened", "text", "thinking", "answer", "thought"), CASES.values(), ids=CASES)
def test_thinking_ends_at_the_token_and_every_id_counts_once(
    opened: bool, text: str, thinking: str, answer: str, thought: Thought, vocabulary: Vocabulary, ids: Ids
) -> None:
    token_ids = ids(text)
    choice = Choice(vocabulary, thinking=opened)
    assert read(choice, token_ids) == (thinking, answer)
    assert choice.thought is thought
    assert choice.completion_tokens == len(token_ids)
    control = sum(token_id in vocabulary.control for token_id in token_ids)
    assert choice.reasoning_tokens + choice.answer_tokens + control == len(token_ids)


@pytest.mark.parametrize(("opened", "text", "thinking", "answer", "thought"), CASES.values(), ids=CASES)
def test_how_tokens_are_cut_into_frames_changes_nothing(
    opened: bool, text: str, thinking: str, answer: str, thought: Thought, vocabulary: Vocabulary, ids: Ids
) -> None:
    token_ids = ids(text)
    for cut in range(len(token_ids) + 1):
        choice = Choice(vocabulary, thinking=opened)
        assert read(choice, token_ids, [cut]) == (thinking, answer)
        assert choice.thought is thought


@pytest.mark.parametrize(
    ("opened", "text", "reasoning", "answer"),
    [
        (True, f"1+1\n</think>\n\n2{EOS}", "1+1\n", "\n\n2"),
        (True, f"1+1{EOS}", "1+1", ""),
        (True, f"</think>\n\n2{EOS}", "", "\n\n2"),
        (True, "1+", "1+", ""),
        (False, f"<think>\n1+1\n</think>\n\n2{EOS}", "\n1+1\n", "\n\n2"),
    ],
    ids=["prompt-opened", "missing </think>", "empty thought", "length stop in thinking", "opened by the model"],
)
def test_reasoning_tokens_are_those_between_the_tags(
    opened: bool, text: str, reasoning: str, answer: str, vocabulary: Vocabulary, ids: Ids
) -> None:
    choice = Choice(vocabulary, thinking=opened)
    read(choice, ids(text))
    assert choice.reasoning_tokens == len(ids(reasoning))
    assert choice.answer_tokens == len(ids(answer))


def test_text_that_looks_like_a_tag_is_text(vocabulary: Vocabulary, checkpoint: Checkpoint, ids: Ids) -> None:
    spelled = checkpoint.plain.encode("a </think> b <think> c").ids
    choice = Choice(vocabulary, thinking=True)
    assert read(choice, [*spelled, *ids("</think>"), *spelled]) == (("a </think> b <think> c",) * 2)


@pytest.mark.parametrize("text", ["naïve", "日本語", "😀👨‍👩‍👧", "🏳️‍🌈 é", "a😀"])
def test_characters_split_over_tokens_arrive_whole(text: str, vocabulary: Vocabulary, ids: Ids) -> None:
    choice = Choice(vocabulary, thinking=False)
    pieces = [piece for token_id in ids(text) for _, piece in choice.feed([token_id])]
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) == text


def test_half_a_character_is_flushed_as_replacement_at_the_end_of_each_part(vocabulary: Vocabulary, ids: Ids) -> None:
    half = ids("😀")[:3]
    choice = Choice(vocabulary, thinking=True)
    assert read(choice, [*ids("a"), *half, *ids("</think>b"), *half]) == ("a\ufffd", "b\ufffd")


def test_any_ids_read_as_the_tokenizer_decodes_them(vocabulary: Vocabulary, checkpoint: Checkpoint) -> None:
    rng = random.Random(0)
    plain = [i for i in range(checkpoint.tokenizer.get_vocab_size()) if i not in vocabulary.control]
    for _ in range(200):
        token_ids = rng.choices(plain, k=40)
        choice = Choice(vocabulary, thinking=False)
        whole = checkpoint.tokenizer.decode(token_ids, skip_special_tokens=False)
        assert read(choice, token_ids)[1] == whole.lstrip("\n")


def test_ids_that_only_pad_the_vocabulary_count_and_have_no_text(vocabulary: Vocabulary, ids: Ids) -> None:
    choice = Choice(vocabulary, thinking=False)
    assert read(choice, [*ids("a"), 10**6, *ids("b")]) == ("", "ab")
    assert choice.completion_tokens == choice.answer_tokens == 3


def test_a_stop_string_is_looked_for_in_the_answer_only(vocabulary: Vocabulary, ids: Ids) -> None:
    choice = Choice(vocabulary, thinking=True, stop=("4",))
    assert read(choice, ids("2+2=4\n</think>\n\nIt is 4.")) == ("2+2=4", "It is ")
    assert choice.stopped


def test_a_stop_string_over_tokens_is_found_and_later_ids_are_not_counted(vocabulary: Vocabulary, ids: Ids) -> None:
    token_ids = ids("</think>a1234 b")
    choice = Choice(vocabulary, thinking=True, stop=("234",))
    assert read(choice, token_ids, []) == ("", "a1")
    assert choice.stopped
    assert choice.completion_tokens == len(ids("</think>a1234"))


def test_the_blank_line_after_the_thought_is_no_stop_string(vocabulary: Vocabulary, ids: Ids) -> None:
    choice = Choice(vocabulary, thinking=True, stop=("\n\n",))
    assert read(choice, ids("x</think>\n\na\n\nb")) == ("x", "a")


def test_what_could_begin_a_stop_string_is_shown_at_the_end(vocabulary: Vocabulary, ids: Ids) -> None:
    choice = Choice(vocabulary, thinking=False, stop=("123",))
    assert choice.feed(ids("a12")) == [(Kind.ANSWER, "a")]
    assert choice.end() == [(Kind.ANSWER, "12")]
    assert not choice.stopped


def test_one_feed_gives_at_most_one_piece_a_part(vocabulary: Vocabulary, ids: Ids) -> None:
    choice = Choice(vocabulary, thinking=True)
    assert choice.feed(ids("a b c</think>\n\nd e")) == [(Kind.THINKING, "a b c"), (Kind.ANSWER, "d e")]
