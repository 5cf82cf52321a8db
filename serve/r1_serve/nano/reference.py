"""What transformers answers, greedily in float32: the answers every served layout is held against.

`python -m r1_serve.nano.reference < replies.jsonl` reads `{"question", "reasoning", "answer", "completion_tokens"}` a
line and prints transformers' own reply to each question in the same form. A reply whose every token is transformers'
first choice after the ones before it *is* transformers' greedy reply; that takes one forward pass, and only the others
are generated, which costs transformers a second a token.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from r1_serve.nano import weights_path
from r1_serve.nano.data import prompt_text
from r1_serve.nano.tokenizer import EOS, PAD, THINK_END, special_id

MAX_NEW = 900
BATCH = 20
TIE = 1e-4  # two tokens this close in float32 logits are both first choices


@dataclass(frozen=True)
class Reply:
    """White space around thought and answer is left out; ``completion_tokens`` counts everything, the end included."""

    question: str
    reasoning: str
    answer: str
    completion_tokens: int


class Reference:
    """transformers' model of a checkpoint directory, on one thread: a team on busy cores is slower than one."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.eos, self.pad, self.think_end = (special_id(self.tokenizer, token) for token in (EOS, PAD, THINK_END))
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def replies(self, served: Sequence[Reply]) -> list[Reply]:
        """transformers' reply to each served one's question, in order."""
        prompts = [self.tokenizer.encode(prompt_text(reply.question)).ids for reply in served]
        written = [self.tokens(reply) for reply in served]
        order = sorted(range(len(served)), key=lambda i: len(prompts[i]) + len(written[i]))
        found = list(served)
        for start in range(0, len(order), BATCH):
            chunk = order[start : start + BATCH]
            for i, regret in zip(chunk, self.regrets([(prompts[i], written[i]) for i in chunk]), strict=True):
                # A reply of another length was not written the way it is rebuilt here.
                if regret > TIE or len(written[i]) != served[i].completion_tokens:
                    found[i] = self.generate(served[i].question, prompts[i])
        return found

    def tokens(self, reply: Reply) -> list[int]:
        """The ids of a reply, as the model writes them."""
        text = f"{reply.reasoning}\n{THINK_END}\n\n{reply.answer}"
        return [*self.tokenizer.encode(text).ids, self.eos]

    def regrets(self, pairs: Iterable[tuple[list[int], list[int]]]) -> list[float]:
        """How far below transformers' first choice the worst token of each completion lies, in logits."""
        import torch

        pairs = list(pairs)
        length = max(len(p) + len(c) for p, c in pairs)
        # Padded on the right: causal attention never sees it.
        rows = torch.tensor([p + c + [self.pad] * (length - len(p) - len(c)) for p, c in pairs])
        with torch.inference_mode():
            logits_BSV = self.model(rows).logits
        regrets = []
        for logits_SV, (prompt, completion) in zip(logits_BSV, pairs, strict=True):
            at_CV = logits_SV[len(prompt) - 1 : len(prompt) + len(completion) - 1]
            chosen_C = at_CV.gather(-1, torch.tensor(completion).unsqueeze(-1)).squeeze(-1)
            regrets.append(float((at_CV.max(-1).values - chosen_C).max()))
        return regrets

    def generate(self, question: str, prompt: list[int]) -> Reply:
        import torch

        with torch.inference_mode():
            out = self.model.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
                temperature=None, top_p=None, max_new_tokens=MAX_NEW, eos_token_id=self.eos, pad_token_id=self.pad,
            )  # fmt: skip
        ids: list[int] = out[0, len(prompt) :].tolist()
        # Without a closing mark all of it is thought.
        at = ids.index(self.think_end) if self.think_end in ids else len(ids)
        thought = self.tokenizer.decode(ids[:at])
        # A model that goes astray may close its thought again: the router shows no mark, so neither does this.
        answer = self.tokenizer.decode([token for token in ids[at + 1 :] if token != self.think_end])
        return Reply(question, thought.strip(), answer.strip(), len(ids))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=weights_path())
    args = parser.parse_args()
    served: list[dict[str, Any]] = [json.loads(line) for line in sys.stdin]
    for reply in Reference(args.weights).replies([Reply(**row) for row in served]):
        sys.stdout.write(json.dumps(asdict(reply)) + "\n")


if __name__ == "__main__":
    main()
