"""Answer questions greedily with r1-nano in vLLM: ``engine.py TP DP``, experts split over all ranks."""

import json
import multiprocessing
import os
import socket
import sys
from typing import Any

from r1_serve.nano import weights_path
from r1_serve.rehearsal import engine_arguments, environment
from r1_serve.workers.engine import cache_of

QUESTIONS = [
    "What is 47 + 85?",
    "What is 9003 - 478?",
    "Is 91 prime?",
    "Sort 5, 2, 9, 1, 7, 3.",
    "How many times does the letter r occur in strawberry?",
    "Which is larger, 3.11 or 3.9?",
    "What is 38 * 46?",
    "Tom has 12 apples and eats 5 of them. How many are left?",
]
TOKENS = 48
TOP = 4


def prompts() -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(weights_path())
    return [
        tokenizer.apply_chat_template([{"role": "user", "content": q}], add_generation_prompt=True, return_dict=False)
        for q in QUESTIONS
    ]


def engine(tensor: int, data: int) -> Any:
    from vllm import LLM

    return LLM(
        model=str(weights_path()), skip_tokenizer_init=True, dtype="float32", max_model_len=512, max_num_seqs=16,
        tensor_parallel_size=tensor, enable_expert_parallel=tensor * data > 1, **engine_arguments(kv_cache_gib=0.125),
    )  # fmt: skip


def answer(llm: Any, asked: list[list[int]]) -> list[dict[str, Any]]:
    """Tokens of each answer, and the TOP log-probabilities before every token but the prompt's first."""
    from vllm import SamplingParams

    greedy = SamplingParams(
        temperature=0, max_tokens=TOKENS, ignore_eos=True, detokenize=False, logprobs=TOP, prompt_logprobs=TOP
    )
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in asked], greedy, use_tqdm=False)
    return [
        {
            "tokens": list(o.outputs[0].token_ids),
            "logprobs": [
                {token: value.logprob for token, value in at.items()}
                for at in [*o.prompt_logprobs[1:], *o.outputs[0].logprobs]
            ],
        }
        for o in outputs
    ]


def difference(asked: list[list[int]], answers: list[dict[str, Any]]) -> dict[str, float]:
    """Compare with transformers reading the same tokens, all in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(weights_path(), dtype=torch.float32)
    worst, regret = 0.0, 0.0
    for ids, got in zip(asked, answers, strict=True):
        with torch.no_grad():
            logits_SV = model(torch.tensor([ids + got["tokens"]])).logits[0]
        right_SV = logits_SV.log_softmax(-1)
        for position, at in enumerate(got["logprobs"]):
            worst = max(worst, *(abs(right_SV[position, token].item() - value) for token, value in at.items()))
        for position, token in enumerate(got["tokens"], start=len(ids) - 1):
            regret = max(regret, (right_SV[position].max() - right_SV[position, token]).item())
    return {"logprob": worst, "regret": regret}


def rank(index: int, tensor: int, world: int, port: int, results: Any) -> None:
    """One of two data-parallel ranks: the first has all questions but one, the other steps with a single token."""
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process: two imports of vLLM instead of four
        "VLLM_DP_RANK": str(index), "VLLM_DP_RANK_LOCAL": str(index), "VLLM_DP_SIZE": str(world),
        "VLLM_DP_MASTER_IP": "127.0.0.1", "VLLM_DP_MASTER_PORT": str(port),
    }  # fmt: skip
    mine = prompts()[:-1] if index == 0 else prompts()[-1:]
    results.put((index, [got["tokens"] for got in answer(engine(tensor, world), mine)]))


def data_parallel(tensor: int, world: int) -> list[list[int]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    ranks = [spawn.Process(target=rank, args=(index, tensor, world, port, results)) for index in range(world)]
    for process in ranks:
        process.start()
    by_rank = dict(results.get(timeout=200) for _ in ranks)
    for process in ranks:
        process.join(timeout=30)
    return [tokens for index in range(world) for tokens in by_rank[index]]


def main() -> None:
    tensor, data = int(sys.argv[1]), int(sys.argv[2])
    os.environ |= environment(threads=1)
    facts: dict[str, Any] = {}
    if data > 1:
        facts["tokens"] = data_parallel(tensor, data)
    else:
        asked, llm = prompts(), engine(tensor, data)
        facts["kv_tokens"] = cache_of(llm.llm_engine)[0]
        answers = answer(llm, asked)
        facts["tokens"] = [got["tokens"] for got in answers]
        if tensor == 1:
            facts["alone"] = [answer(llm, [ids])[0]["tokens"] for ids in asked]
            facts["resumed"] = [
                answer(llm, [ids + got["tokens"][:20]])[0]["tokens"][: TOKENS - 20]
                for ids, got in zip(asked, answers, strict=True)
            ]
            facts["difference"] = difference(asked, answers)
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
