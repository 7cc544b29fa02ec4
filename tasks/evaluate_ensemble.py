"""Measure several models together: a deep ensemble (Lakshminarayanan et al. 2017).

The members' probabilities of the choices are averaged, then the temperature is fitted, since the
mean of calibrated models is under-confident (Rahaman and Thiery 2021). It costs all of their
passes, which is what a single student has to compare with; nothing of it is registered or served.

Reads   data/model/MEMBER/, data/prepare/{calibration,test}.parquet, data/prepare/ood_*.parquet
Writes  data/evaluate/NAME/metrics.json, predictions.parquet, calibration.json
Run as  python -m tasks.evaluate_ensemble NAME   (normally through `dvc repro evaluate-NAME`)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from firstkd.data.examples import Example
from firstkd.data.settings import PromptSettings
from firstkd.errors import ConfigError
from firstkd.reproducibility import deterministic
from firstkd.settings import load_settings
from tasks.evaluation import write_evaluation
from tasks.layout import model_folder
from tasks.scores import Scored
from tasks.stage import run_stage
from tasks.subject import Subject


def main(root: Path, name: str) -> None:
    settings = load_settings(root / "params.yaml")
    if name not in settings.measured_ensembles:
        names = ", ".join(settings.measured_ensembles) or "none"
        raise ConfigError(f"{name!r} is not an ensemble of evaluate.models; there are {names}")
    deterministic(settings.runtime.seed, settings.runtime.threads)
    folders = {of: model_folder(root, of) for of in settings.evaluate.ensembles[name]}
    members = [
        Subject.load(f"{name}, {of}", folder, settings.prompt, settings.evaluate)
        for of, folder in folders.items()
    ]
    weights = [path for folder in folders.values() for path in folder.glob("*.safetensors")]
    facts = {
        "parameters": sum(member.network.num_parameters() for member in members),
        "bytes": sum(path.stat().st_size for path in weights),
        "open_text": {},
    }
    write_evaluation(root, Together(name, members, settings.prompt), None, settings, facts)


@dataclass(frozen=True)
class Together:
    name: str
    members: Sequence[Subject]
    prompt: PromptSettings

    def score(self, examples: Sequence[Example], title: str) -> Scored:
        """Score the choices of questions by the logarithm of their mean probability."""
        logprobs = torch.stack(
            [member.score(examples, title).scores.log_softmax(-1) for member in self.members]
        )
        mean = logprobs.double().logsumexp(0) - math.log(len(self.members))
        # a token's probability over the vocabulary is no longer in these scores
        return Scored.of(examples, mean.float(), by_one_token=False)


if __name__ == "__main__":
    run_stage(main, "evaluate", "ensemble")
