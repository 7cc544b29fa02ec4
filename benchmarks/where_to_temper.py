"""Where a temperature helps: at every token, or at the decision that the tokens make up.

Uses the fine-tuned teacher on the calibration and test questions of the default pipeline.
`every_token` divides all logits by T, over the whole vocabulary, and scores each choice by its
tokens as usual; `choice` divides the choices' scores by the T fitted on the calibration split.
`first_token_top_1` is the mean probability of the most probable token where a right answer begins:
what tempering the whole vocabulary leaves of it. Prints one JSON line; needs the stages up to
model-teacher.

Run as  python -m benchmarks.where_to_temper
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from firstkd.data.examples import read_examples
from firstkd.data.packing import Batch, batches_by_length, pack
from firstkd.data.prompts import Question, encode
from firstkd.measure.metrics import Predictions, one_right
from firstkd.models.choice_scores import choice_scores
from firstkd.models.folders import load_model, load_tokenizer
from firstkd.models.head import chunks, within
from firstkd.models.scoring import ResponseScorer
from firstkd.recalibration.temperature import Temperature
from firstkd.settings import load_settings
from firstkd.signals.knowledge import Knowledge

TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 5.0)
SHOWN = ("accuracy", "ece", "nll")


def main(root: Path = Path(".")) -> None:
    settings = load_settings(root / "params.yaml")
    torch.set_num_threads(settings.runtime.threads)
    model = load_model(root / "data/model/teacher", "bf16")
    tokenizer = load_tokenizer(root / "data/model/teacher")
    scores, gold, confidence = {}, {}, {}
    for split in ("calibration", "test"):
        examples = read_examples(root / f"data/prepare/{split}.parquet")
        questions = encode(examples, tokenizer, settings.prompt)
        scores[split], confidence[split] = tempered_scores(model, questions)
        gold[split] = torch.tensor([question.gold for question in questions])
    plain = {split: found[0] for split, found in scores.items()}
    decisions = Knowledge.of_choices(plain["calibration"].log_softmax(-1), gold["calibration"])
    fitted = Temperature.fit(
        decisions, decisions.is_right(gold["calibration"]), settings.calibrate
    ).temperature
    print(
        json.dumps(
            {
                "every_token": {
                    temperature: measured(scores["test"][i], gold["test"])
                    for i, temperature in enumerate(TEMPERATURES)
                },
                "choice": {round(fitted, 2): measured(plain["test"] / fitted, gold["test"])},
                "first_token_top_1": {
                    temperature: round(top, 4)
                    for temperature, top in zip(
                        TEMPERATURES, confidence["test"].tolist(), strict=True
                    )
                },
            }
        )
    )


@torch.inference_mode()
def tempered_scores(model: Any, questions: list[Question]) -> tuple[Tensor, Tensor]:
    """Choice scores [T, E, C] with all logits at each temperature, and the confidence [T]."""
    scorer = ResponseScorer(model).eval()
    num_choices = max(len(question.responses) for question in questions)
    scores = torch.full((len(TEMPERATURES), len(questions), num_choices), -torch.inf)
    confidence = torch.zeros(len(TEMPERATURES))
    for index in batches_by_length(questions, 32):
        batch = pack(questions, index)
        logprobs_TM, top_T = tempered_logprobs(scorer, batch)
        confidence += top_T / len(questions)
        for i, logprobs_M in enumerate(logprobs_TM):
            found = choice_scores(logprobs_M, batch.response_of_M, batch.choice_mask_BC)
            scores[i, index, : found.shape[1]] = found
    return scores, confidence


def tempered_logprobs(scorer: ResponseScorer, batch: Batch) -> tuple[Tensor, Tensor]:
    """Log-probabilities [T, M] of the tokens; summed top probabilities [T] where answers begin."""
    hidden = scorer.hidden(batch)
    logprobs = torch.empty(len(TEMPERATURES), len(batch.rows_M))
    top = torch.zeros(len(TEMPERATURES))
    first_M = batch.response_of_M.diff(prepend=batch.response_of_M.new_tensor([-1])) != 0
    for start, end in chunks(len(hidden)):
        inside = within(batch.rows_M, start, end)
        logits = scorer.head.logits(hidden[start:end])
        rows = batch.rows_M[inside] - start
        begins = (first_M & batch.is_gold_M)[inside]
        for i, temperature in enumerate(TEMPERATURES):
            tempered = (logits / temperature).log_softmax(-1)
            logprobs[i, inside] = tempered[rows, batch.targets_M[inside]]
            top[i] += tempered[rows[begins]].amax(-1).exp().sum()
    return logprobs, top


def measured(scores: Tensor, gold: Tensor) -> dict[str, float]:
    values = Predictions.of_choices(
        scores.numpy(), one_right(gold.numpy(), scores.shape[-1])
    ).values()
    return {name: round(values[name], 3) for name in SHOWN}


if __name__ == "__main__":
    main()
