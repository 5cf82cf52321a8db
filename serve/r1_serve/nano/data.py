"""Problems into token batches: chats now and then, samples of like length together, loss on what the model writes."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

import torch
from tokenizers import Tokenizer
from torch import Tensor

from r1_serve.nano.tasks import WEIGHTS, Problem, training_problem
from r1_serve.nano.tokenizer import ASSISTANT, BOS, EOS, PAD, SYSTEM_PROMPTS, THINK, USER, special_id

POOL = 1024  # problems sorted by length at a time
SYSTEM_SHARE = 0.15
HISTORY_SHARE = 0.08
IGNORED = -100


def prompt_text(question: str, system: str = "", history: tuple[tuple[str, str], ...] = ()) -> str:
    """What the chat template renders for a conversation whose last turn is `question`."""
    turns = "".join(f"{USER}{q}{ASSISTANT}{a}{EOS}" for q, a in history)
    return f"{BOS}{system}{turns}{USER}{question}{ASSISTANT}{THINK}\n"


def chat(problem: Problem, rng: random.Random) -> str:
    """The problem's prompt, sometimes with a system prompt or earlier turns, so that neither wrecks the answer."""
    system = rng.choice(SYSTEM_PROMPTS) if rng.random() < SYSTEM_SHARE else ""
    history = []
    if rng.random() < HISTORY_SHARE:
        for _ in range(rng.choice((1, 1, 2))):
            earlier = training_problem(rng)
            lead = "\n\n" if rng.random() < 0.3 else ""  # clients that keep the answer's leading break
            history.append((earlier.question, lead + earlier.answer))
    return prompt_text(problem.question, system, tuple(history))


def batches(
    tokenizer: Tokenizer, rng: random.Random, batch_tokens: int, weights: Mapping[str, float]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (inputs, targets), each [B, T] with B × T near `batch_tokens`; `weights` overrides WEIGHTS by task."""
    mix = {**WEIGHTS, **weights}
    pad, eos = special_id(tokenizer, PAD), special_id(tokenizer, EOS)
    while True:
        names = rng.choices(list(mix), list(mix.values()), k=POOL)
        samples = []
        for name in names:
            problem = training_problem(rng, name)
            prompt = tokenizer.encode(chat(problem, rng)).ids
            samples.append((prompt, [*tokenizer.encode(problem.completion).ids, eos]))
        samples.sort(key=lambda s: len(s[0]) + len(s[1]))
        groups: list[list[tuple[list[int], list[int]]]] = [[]]
        for sample in samples:
            if (len(groups[-1]) + 1) * (len(sample[0]) + len(sample[1])) > batch_tokens and groups[-1]:
                groups.append([])
            groups[-1].append(sample)
        rng.shuffle(groups)
        for group in groups:
            length = max(len(p) + len(c) for p, c in group)
            ids = torch.full((len(group), length), pad)
            targets = torch.full((len(group), length), IGNORED)
            for row, (prompt, completion) in enumerate(group):
                ids[row, : len(prompt) + len(completion)] = torch.tensor(prompt + completion)
                targets[row, len(prompt) : len(prompt) + len(completion)] = torch.tensor(completion)
            yield ids[:, :-1], targets[:, 1:]
