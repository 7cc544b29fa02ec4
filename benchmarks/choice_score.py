"""Which scores a choice better: the mean or the sum of its tokens' log-probabilities.

Prints one JSON line with the teacher's accuracy, NLL and ECE for both, per test set; needs a
finished pipeline.

Run as  python -m benchmarks.choice_score
"""

import json
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from firstkd.data.examples import read_examples
from firstkd.data.prompts import encode
from firstkd.measure.metrics import Predictions
from firstkd.models.folders import load_tokenizer
from firstkd.settings import load_settings


def main(root: Path = Path(".")) -> None:
    prompt = load_settings(root / "params.yaml").prompt
    tokenizer = load_tokenizer(root / "data/model/teacher")
    predictions = pq.read_table(root / "data/evaluate/teacher/predictions.parquet")
    found = {}
    for file in [root / "data/prepare/test.parquet", *(root / "data/prepare").glob("ood_*")]:
        name = file.stem.removeprefix("ood_")
        rows = predictions.filter(pc.equal(predictions["set"], name))
        means = np.array(rows["scores"].to_pylist())
        lengths = np.ones_like(means)
        questions = encode(read_examples(file), tokenizer, prompt)
        with_choices = [question for question in questions if len(question.responses) > 1]
        for row, question in enumerate(with_choices):
            lengths[row, : len(question.responses)] = [len(r) for r in question.responses]
        is_right = np.array(rows["is_right"].to_pylist())
        for score, values in (("mean", means), ("sum", means * lengths)):
            metrics = Predictions.of_choices(values, is_right).values()
            for metric in ("accuracy", "nll", "ece"):
                found[f"{name}_{metric}_{score}"] = round(metrics[metric], 4)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
