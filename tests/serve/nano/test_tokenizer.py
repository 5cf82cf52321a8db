from __future__ import annotations

import random
import sys

import pytest
from jinja2 import Environment
from r1_serve.nano import weights_path
from r1_serve.nano.data import prompt_text
from r1_serve.nano.tasks import held_out
from r1_serve.nano.tokenizer import CHAT_TEMPLATE, EOS, SPECIAL, VOCAB_SIZE, build_tokenizer
from tokenizers import Tokenizer

TOKENIZER = Tokenizer.from_file(str(weights_path() / "tokenizer.json"))
RNG = random.Random(0)
ANY = "".join(chr(c) for c in (RNG.randrange(sys.maxunicode) for _ in range(2000)) if not 0xD800 <= c < 0xE000)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "  a  b \n\n\n c\t\r\n",
        "What is 47 + 85?",
        "naïve 日本語 \U0001f600\u200d\ufeff",
        "\x00\x7f\u0085",
        "e\u0301",
        ANY,
    ],
)
def test_any_text_round_trips(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == text


def test_every_byte_of_a_broken_character_has_its_own_token() -> None:
    assert len(TOKENIZER.encode("😀").ids) == 4
    assert TOKENIZER.decode(TOKENIZER.encode("😀").ids[:3]) == "\ufffd"


@pytest.mark.parametrize("token", SPECIAL)
def test_special_tokens_are_single(token: str) -> None:
    assert TOKENIZER.encode(token).ids == [SPECIAL.index(token)]


def test_digits_and_the_letters_of_a_counted_word_are_single_tokens() -> None:
    assert TOKENIZER.encode("1234").tokens == list("1234")
    assert TOKENIZER.encode('"strawberry"').tokens == list('"strawberry"')
    assert TOKENIZER.encode(" strawberry").tokens[1:] == list("strawberry")


def test_the_vocabulary_is_small_and_full() -> None:
    assert TOKENIZER.get_vocab_size() == VOCAB_SIZE
    assert VOCAB_SIZE % 64 == 0


def test_held_out_thoughts_round_trip() -> None:
    for problem in held_out(120, seed=1):
        ids = TOKENIZER.encode(problem.completion).ids
        assert TOKENIZER.decode(ids, skip_special_tokens=False) == problem.completion


def render(messages: list[dict[str, str]], **kwargs: object) -> str:
    template = Environment(autoescape=False).from_string(CHAT_TEMPLATE)
    return template.render(messages=messages, bos_token="<｜begin▁of▁sentence｜>", **kwargs)


def test_template_opens_the_thought_after_the_system_prompt_and_the_question() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert render(messages, add_generation_prompt=True) == (
        "<｜begin▁of▁sentence｜>Be brief.<｜User｜>Hi<｜Assistant｜><think>\n"
    )


def test_template_renders_what_training_saw() -> None:
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "1 + 1"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "Hi"},
    ]
    assert render(messages, add_generation_prompt=True) == prompt_text("Hi", "S", (("1 + 1", "2"),))


def test_thinking_is_dropped_from_history() -> None:
    messages = [
        {"role": "user", "content": "1 + 1"},
        {"role": "assistant", "content": "<think>\nsecret\n</think>\n\n2"},
        {"role": "user", "content": "Hi"},
    ]
    text = render(messages, add_generation_prompt=True)
    assert "secret" not in text
    assert f"<｜Assistant｜>\n\n2{EOS}<｜User｜>Hi" in text


def test_without_generation_prompt_no_thought_is_opened() -> None:
    assert "<think>" not in render([{"role": "user", "content": "Hi"}])


def test_the_shipped_tokenizer_is_what_the_code_builds() -> None:
    assert build_tokenizer().to_str() == TOKENIZER.to_str()
