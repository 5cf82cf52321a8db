"""r1-nano's tokenizer: R1's special tokens, bytes, single digits and letters, and the tasks' words.

A byte-level BPE without merges: a piece of text is one token if it is a known word, else its bytes. So any text
round-trips, an unknown or quoted word is spelled letter by letter (which is what counting letters needs), and
thinking stays cheap.
"""

from __future__ import annotations

import random
from collections import Counter

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from r1_serve.nano.tasks import training_problem
from r1_serve.nano.tasks.letters import WORDS as COUNTED_WORDS

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
USER = "<｜User｜>"
ASSISTANT = "<｜Assistant｜>"
THINK = "<think>"
THINK_END = "</think>"
PAD = "<｜▁pad▁｜>"
SPECIAL = (BOS, EOS, PAD, USER, ASSISTANT, THINK, THINK_END)
VOCAB_SIZE = 512
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are r1-nano.",
    "Answer the question.",
    "You are a careful assistant. Think step by step.",
)

# A quoted word keeps its quote, so that it is never one of the known words; punctuation takes the spaces around it.
_PIECES = r"\d| ?[\"'“‘]\p{L}*| ?\p{L}+(?:-\p{L}+)?| ?[^\s\p{L}\d\"'“‘]+ ?|\n\n|\s"

# R1's own template in short: the system prompt right after the first token, thinking dropped from earlier turns,
# the last turn opened with <think> so that the model starts inside its thought.
CHAT_TEMPLATE = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(system='') %}"
    "{% for m in messages %}{% if m['role'] == 'system' %}"
    "{% set ns.system = ns.system + ('\\n\\n' if ns.system else '') + m['content'] %}{% endif %}{% endfor %}"
    "{{ bos_token }}{{ ns.system }}"
    "{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}"
    "{% elif m['role'] == 'assistant' %}"
    "{{ '<｜Assistant｜>' + (m['content'] or '').split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt and messages[-1]['role'] != 'assistant' %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)


def _splitter() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _is_word(piece: str) -> bool:
    """Whether a piece may be one token: not a lone letter, not a quoted or counted word, no part of a special token."""
    text = piece.removeprefix("Ġ")
    quoted = text.startswith('"') and len(text) > 1
    lone_letter = len(text) == 1 and text.isalpha()
    return len(piece) > 1 and not (lone_letter or quoted or text in COUNTED_WORDS or "think" in text)


def build_tokenizer(samples: int = 30_000) -> Tokenizer:
    """The tokenizer, its words being the pieces most frequent in `samples` generated problems."""
    splitter, rng = _splitter(), random.Random(0)
    pieces: Counter[str] = Counter()
    for text in SYSTEM_PROMPTS:
        pieces.update({piece: samples for piece, _ in splitter.pre_tokenize_str(text)})
    for _ in range(samples):
        problem = training_problem(rng)
        # What is left of a counted word must stay spelled, however frequent it is.
        thinking = problem.thinking.partition("\n")[0] if problem.task == "letters" else problem.thinking
        text = f"{problem.question}\n{problem.answer}\n{thinking}"
        pieces.update(piece for piece, _ in splitter.pre_tokenize_str(text))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    room = VOCAB_SIZE - len(SPECIAL) - len(alphabet)
    words = [piece for piece, _ in pieces.most_common() if _is_word(piece)][:room]
    vocab = {token: i for i, token in enumerate((*SPECIAL, *alphabet, *words))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (BOS, EOS, PAD)])
    # As in R1's tokenizer, role and thinking marks are added tokens that decoding keeps.
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in (USER, ASSISTANT, THINK, THINK_END)])
    return tokenizer


def special_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that must exist."""
    found = tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(f"the tokenizer has no {token}")
    return found


def tokenizer_config() -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "chat_template": CHAT_TEMPLATE,
    }
