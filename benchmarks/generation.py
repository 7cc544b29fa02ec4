"""How fast answers are written, against transformers' own `generate` with its KV cache.

A random model of SmolLM2-135M's shape in float32 continues prompts of uneven length. Theirs are
left-padded in the order in which they come, ours are batched by length; both use the same batch
size.

- `greedy`, `drawn`: tokens per second of `decode`, including probabilities, over those of
  `generate`.
- `difference`: the largest difference between a token's log-probability and that of one pass over
  prompt and text.

Measures processor time of one thread, the fastest of several alternating rounds, so that other work
on the machine matters little. Raises AssertionError unless both write the same greedy texts. Prints
one JSON line.

Run as  python -m benchmarks.generation [--layers 30] [--prompts 32] [--tokens 48] [--rounds 3]
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from benchmarks.models import random_model
from firstkd.data.prompts import Question
from firstkd.models.scoring import ScoringHead, score_tokens
from firstkd.open_text.decoding import Draw, Text, decode

BATCH = 16
BATCH_TOKENS = 8192
SHORTEST, LONGEST = 20, 200
STOP = 0

Ids = Sequence[int]


def prompts_of(count: int) -> list[list[int]]:
    generator = random.Random(0)
    lengths = [generator.randint(SHORTEST, LONGEST) for _ in range(count)]
    return [[generator.randint(1, 49_151) for _ in range(length)] for length in lengths]


def theirs(model: Any, prompts: Sequence[Ids], tokens: int, temperature: float) -> list[list[int]]:
    settings = GenerationConfig(
        max_new_tokens=tokens,
        do_sample=temperature > 0,
        temperature=temperature or None,
        top_k=0 if temperature else None,
        eos_token_id=STOP,
        pad_token_id=STOP,
    )
    found = []
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        length = max(map(len, batch))
        ids_BL = torch.tensor([[STOP] * (length - len(ids)) + [*ids] for ids in batch])
        mask_BL = torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in batch])
        with torch.inference_mode():
            written = model.generate(ids_BL, attention_mask=mask_BL, generation_config=settings)
        found += [_ended(row) for row in written[:, length:].tolist()]
    return found


def _ended(ids: list[int]) -> list[int]:
    return ids[: ids.index(STOP) + 1] if STOP in ids else ids


def ours(model: Any, prompts: Sequence[Ids], tokens: int, temperature: float) -> list[Text]:
    draws = [Draw(prompt, temperature, 0, seed=0) for prompt in prompts]
    head = ScoringHead(model, exact=True)
    return decode(model, draws, {STOP}, tokens, BATCH, BATCH_TOKENS, head=head)


def difference(model: Any, prompts: Sequence[Ids], texts: Sequence[Text]) -> float:
    questions = [
        Question(id="", prompt=[*prompt], responses=[text.ids], gold=0)
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    scored = score_tokens(model, questions, BATCH, batch_tokens=BATCH_TOKENS)
    in_order = scored.probability_T[scored.example_T.argsort(stable=True)].double().numpy()
    ours = np.concatenate([text.probabilities for text in texts])
    return float(np.abs(np.log(in_order) - np.log(ours)).max())


def speed(write: Callable[[], list[Any]]) -> tuple[float, list[Any]]:
    """Return tokens per second of processor time, and what was written."""
    started = time.process_time()
    written = write()
    seconds = time.process_time() - started
    return sum(len(getattr(each, "ids", each)) for each in written) / seconds, written


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generation")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = random_model(given.layers).float().eval()
    model.set_attn_implementation("sdpa")
    prompts, tokens = prompts_of(given.prompts), given.tokens
    ways: dict[str, Callable[[], list[Any]]] = {
        "generate": lambda: theirs(model, prompts, tokens, 0),
        "greedy": lambda: ours(model, prompts, tokens, 0),
        "generate, drawn": lambda: theirs(model, prompts, tokens, 1.0),
        "drawn": lambda: ours(model, prompts, tokens, 1.0),
    }
    fastest = dict.fromkeys(ways, 0.0)
    for _ in range(given.rounds):
        written = {}
        for name, way in ways.items():
            found, written[name] = speed(way)
            fastest[name] = max(fastest[name], found)
        assert [text.ids for text in written["greedy"]] == written["generate"]
    line = {
        "benchmark": "generation",
        "layers": given.layers,
        "prompts": given.prompts,
        "tokens_per_second": {name: round(found, 1) for name, found in fastest.items()},
        "greedy": round(fastest["greedy"] / fastest["generate"], 3),
        "drawn": round(fastest["drawn"] / fastest["generate, drawn"], 3),
        "difference": difference(model, prompts, written["greedy"]),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
