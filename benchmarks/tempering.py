"""How exact whole-vocabulary tempering is, from five candidates and eight tail corrections a token.

Reports the largest error of the head's mass, including storage precision, against the dense softmax
of the same logits, over temperatures from 0.5 to 5. Uses the fetched base model and the fine-tuned
teacher, on right answers and on the questions' own text. Prints one JSON line; needs the stages up
to model-teacher.

Run as  python -m benchmarks.tempering
"""

import json
from pathlib import Path

import numpy as np
import torch

from benchmarks.capture import open_text
from firstkd.data.examples import read_examples
from firstkd.data.packing import batches_by_length, pack
from firstkd.data.prompts import encode
from firstkd.models.folders import load_model, load_tokenizer
from firstkd.models.scoring import ResponseScorer
from firstkd.settings import load_settings
from firstkd.signals.select import TopK
from firstkd.signals.store import Records
from firstkd.signals.tail import NODES, TEMPERATURES, temper
from firstkd.signals.tokens import Tokens
from firstkd.signals.top_k import knowledge_of, packed, token_decisions

QUESTIONS, TOP_K = 64, 5


def errors(logits: torch.Tensor) -> dict[str, float]:
    """Largest errors of the head's mass over all positions and temperatures."""
    size = logits.shape[1]
    found = knowledge_of(logits.log_softmax(-1), TOP_K, len(NODES))
    record = token_decisions(as_stored(packed(found, torch.tensor([len(logits)])), size), size)
    largest = {"0.5_to_5": 0.0, "0.8_to_3": 0.0}
    for temperature in np.geomspace(*TEMPERATURES, 25).tolist():
        head = (
            (logits.double() / temperature).log_softmax(-1).gather(1, record.top_ids).exp().sum(-1)
        )
        mass = temper(record, temperature).sum(-1)
        error = float((mass - head).abs().max())
        largest["0.5_to_5"] = max(largest["0.5_to_5"], error)
        if 0.8 <= temperature <= 3:
            largest["0.8_to_3"] = max(largest["0.8_to_3"], error)
    return largest


def as_stored(records: Records, vocabulary_size: int) -> Records:
    signal = Tokens(kind="tokens", of="teacher", select=TopK(kind="top_k", k=TOP_K), tail_nodes=8)
    columns = {
        name: records.columns[name].to(column.dtype)
        for name, column in signal.layout(vocabulary_size).items()
    }
    return Records(columns, records.counts)


@torch.inference_mode()
def main(root: Path = Path(".")) -> None:
    settings = load_settings(root / "params.yaml")
    torch.set_num_threads(settings.runtime.threads)
    examples = read_examples(root / "data/prepare/test.parquet")[:QUESTIONS]
    found = {}
    for name, folder in (("base", "data/model/base"), ("teacher", "data/model/teacher")):
        scorer = ResponseScorer(load_model(root / folder, "fp32")).eval()
        questions = encode(examples, load_tokenizer(root / folder), settings.prompt)
        answers = [question.gold_only() for question in questions]
        for kind, asked in (("answers", answers), ("text", [open_text(q) for q in answers])):
            logits = torch.cat(
                [
                    scorer.hidden(pack(asked, index)) @ scorer.head.weight.T
                    for index in batches_by_length(asked, 16)
                ]
            )
            for span, error in errors(logits[:500]).items():
                found[f"{name}_{kind}_{span}"] = float(f"{error:.2g}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
