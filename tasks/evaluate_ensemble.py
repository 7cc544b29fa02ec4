"""Measure several models, or several variants of one, as an ensemble: kinds in firstkd/ensembles/.

The probabilities of the choices are averaged over the passes before the temperature is fitted,
since the mean of calibrated models is under-confident (Rahaman and Thiery 2021). It costs all of
its passes and is a yardstick for a single student: it is neither registered nor served.

Reads   data/model/MEMBER/,
        data/prepare/{train,calibration,test}.parquet, data/prepare/ood_*.parquet
Writes  data/evaluate/NAME/metrics.json, predictions.parquet, calibration.json
Run as  python -m tasks.evaluate_ensemble NAME   (normally through `dvc repro evaluate-NAME`)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from firstkd.data.examples import Example, read_examples
from firstkd.data.prompts import encode
from firstkd.data.settings import PromptSettings
from firstkd.ensembles.base import Ensemble
from firstkd.errors import ConfigError, about
from firstkd.reproducibility import deterministic
from firstkd.settings import load_settings
from tasks.evaluation import write_evaluation
from tasks.layout import model_folder, prepared
from tasks.scores import Scored
from tasks.stage import run_stage
from tasks.subject import Subject


def main(root: Path, name: str) -> None:
    settings = load_settings(root / "params.yaml")
    if name not in settings.measured_ensembles:
        names = ", ".join(settings.measured_ensembles) or "none"
        raise ConfigError(f"{name!r} is not an ensemble in evaluate.models; allowed: {names}")
    deterministic(settings.runtime.seed, settings.runtime.threads)
    ensemble, seed = settings.evaluate.ensembles[name], settings.runtime.seed
    folders = {of: model_folder(root, of) for of in ensemble.models}
    members = [
        Subject.load(f"{name}, {of}", folder, settings.prompt, settings.evaluate)
        for of, folder in folders.items()
    ]
    networks = [member.network for member in members]
    with about(f"params.yaml: evaluate.ensembles.{name}"):
        ensemble.check(networks)
    fitted = None
    if ensemble.is_fitted:
        examples = read_examples(prepared(root, "train"))
        questions = encode(examples, members[0].tokenizer, settings.prompt)
        fitted = ensemble.fit(networks, questions, settings.evaluate.micro_batch_size)
    weights = [path for folder in folders.values() for path in folder.glob("*.safetensors")]
    facts = {
        "parameters": sum(network.num_parameters() for network in networks),
        "bytes": sum(path.stat().st_size for path in weights),
        "open_text": {},
    }
    together = Together(name, ensemble, members, settings.prompt, fitted, seed)
    write_evaluation(root, together, None, settings, facts)


@dataclass(frozen=True)
class Together:
    name: str
    ensemble: Ensemble
    members: Sequence[Subject]
    prompt: PromptSettings
    fitted: Tensor | None
    """What the ensemble fitted to training questions, if anything."""
    seed: int

    def score(self, examples: Sequence[Example], title: str) -> Scored:
        """Score the choices of questions by the logarithm of their mean probability."""
        networks = [member.network for member in self.members]
        logprobs = torch.stack(
            [
                self.members[i].score(examples, title).scores.log_softmax(-1)
                for i in self.ensemble.passes(networks, self.fitted, self.seed)
            ]
        )
        mean = logprobs.double().logsumexp(0) - math.log(len(logprobs))
        # a token's probability over the vocabulary is no longer in these scores
        return Scored.of(examples, mean.float(), by_one_token=False)


if __name__ == "__main__":
    run_stage(main, "evaluate", "ensemble")
