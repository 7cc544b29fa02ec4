"""Measure an export in the runtime that serves it: how often is it right, and does it know when?

In the metrics, `raw` is the exported file as it is; its temperature is fitted again, since
quantised weights are another model. Speed and memory are not outputs: `python -m benchmarks.edge`.

Reads   data/export/NAME/, data/prepare/{calibration,test}.parquet, data/prepare/ood_*.parquet
Writes  data/evaluate/NAME/metrics.json, predictions.parquet, calibration.json
Run as  python -m tasks.evaluate_export NAME   (normally through `dvc repro evaluate-NAME`)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from firstkd.data.examples import Example
from firstkd.data.prompts import encode
from firstkd.data.settings import PromptSettings
from firstkd.errors import ArtifactError, ConfigError
from firstkd.exports.reader import Student, Unusable
from firstkd.models.folders import load_tokenizer
from firstkd.settings import load_settings
from tasks.evaluation import write_evaluation
from tasks.layout import export_folder
from tasks.scores import Scored
from tasks.stage import run_stage


def main(root: Path, name: str) -> None:
    settings = load_settings(root / "params.yaml")
    if name not in settings.measured_exports:
        names = ", ".join(settings.measured_exports) or "none"
        raise ConfigError(f"{name!r} is not an export in evaluate.models; allowed: {names}")
    folder = export_folder(root, name)
    try:
        student = Student(folder, threads=settings.runtime.threads)
    except Unusable as error:
        raise ArtifactError(f"{error}; run export-{name} again") from error
    subject = Subject(name, student, load_tokenizer(folder), settings.prompt)
    facts = {
        "parameters": student.facts["parameters"],
        "bytes": (folder / student.facts["file"]).stat().st_size,
        "open_text": {},
    }
    write_evaluation(root, subject, None, settings, facts)


@dataclass(frozen=True)
class Subject:
    name: str
    student: Student
    tokenizer: Any
    prompt: PromptSettings

    def score(self, examples: Sequence[Example], title: str) -> Scored:
        """Score the choices of questions."""
        questions = encode(examples, self.tokenizer, self.prompt)
        scores = torch.full((len(questions), max(len(q.responses) for q in questions)), -torch.inf)
        for row, question in zip(scores, tqdm(questions, title, unit="question"), strict=True):
            found = self.student.scores(question.prompt, question.responses)
            row[: len(found)] = torch.tensor(found)
        one = all(len(response) == 1 for question in questions for response in question.responses)
        return Scored.of(examples, scores, by_one_token=one)


if __name__ == "__main__":
    run_stage(main, "evaluate", "export")
