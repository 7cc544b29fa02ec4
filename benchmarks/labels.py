"""How classification time grows with the labels: one pass over the prompt, then labels alone.

A random model of SmolLM2-135M's shape scores questions with a prompt of 120 tokens and 2 to 300
labels of three tokens each. For each number of labels, reports milliseconds per question, and

- `per_token_vs_2_labels`: milliseconds per token (the prompt once, and all labels) ÷ those for two
  labels: about 1 if time is proportional to the input tokens;
- `vs_each_alone`: time ÷ that of as many questions with one label each, prompt included.

Seconds are processor time of the fastest of several rounds. Prints one JSON line.

Run as  python -m benchmarks.labels [--layers 30] [--rounds 3]
"""

import argparse
import json
import time
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from benchmarks.models import random_model
from firstkd.data.prompts import Question
from firstkd.models.scoring import score_questions

PROMPT, LABEL = 120, 3
"""Tokens."""
LABELS = (2, 20, 77, 150, 300)
ALONE = 8
"""Questions with one label that are timed."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.labels")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    model = random_model(given.layers)
    found = {}
    for labels in LABELS:
        question = question_of(labels, model.config.vocab_size)
        alone = [Question("", question.prompt, [label], 0) for label in question.responses[:ALONE]]
        shared = fastest(model, [question], given.rounds)
        each = fastest(model, alone, given.rounds) / len(alone)
        per_token = shared / (PROMPT + labels * LABEL)
        found[labels] = (shared, per_token, shared / (labels * each))
    print(
        json.dumps(
            {
                labels: {
                    "milliseconds": round(1e3 * shared),
                    "per_token_vs_2_labels": round(per_token / found[LABELS[0]][1], 2),
                    "vs_each_alone": round(vs_each_alone, 3),
                }
                for labels, (shared, per_token, vs_each_alone) in found.items()
            }
        )
    )


def question_of(labels: int, vocabulary: int) -> Question:
    draw = torch.Generator().manual_seed(labels)
    ids = torch.randint(3, vocabulary, (PROMPT + labels * LABEL,), generator=draw).tolist()
    starts = range(PROMPT, len(ids), LABEL)
    return Question(str(labels), ids[:PROMPT], [ids[i : i + LABEL] for i in starts], 0)


def fastest(model: PreTrainedModel, questions: Sequence[Question], rounds: int) -> float:
    """Return the processor seconds that scoring takes."""
    seconds = []
    for _ in range(rounds + 1):  # the first warms up
        started = time.process_time()
        score_questions(model, questions, batch_size=1)
        seconds.append(time.process_time() - started)
    return min(seconds[1:])


if __name__ == "__main__":
    main()
