"""Fit the recalibrations that make the teacher's confidence honest.

Reads   data/extract/calibration/, data/prepare/calibration.parquet
Writes  data/calibrate/RECALIBRATION.json, metrics.json, reliability.png
Run as  python -m tasks.calibrate   (normally through `dvc repro calibrate`)
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from firstkd.data.examples import Example, read_examples, unit_hash
from firstkd.data.prompts import encode
from firstkd.errors import DataValidationError
from firstkd.files import atomic_folder, write_json
from firstkd.measure.bootstrap import Estimate
from firstkd.measure.figures import save_reliability
from firstkd.measure.metrics import Predictions
from firstkd.models.folders import load_tokenizer
from firstkd.recalibration.base import Recalibration, top_is_right
from firstkd.recalibration.settings import CalibrateSettings
from firstkd.recalibration.table import RECALIBRATIONS, to_json
from firstkd.recalibration.temperature import Temperature, temperature_interval, warn_at_bound
from firstkd.reproducibility import deterministic
from firstkd.settings import Settings, load_settings
from firstkd.signals.knowledge import Kind, Knowledge, KnowledgeStore
from tasks.identity import knowledge_identity
from tasks.scores import right_choices
from tasks.stage import run_stage

FOLDS = 5
log = logging.getLogger(__name__)


def main(root: Path = Path(".")) -> None:
    settings = load_settings(root / "params.yaml")
    deterministic(settings.runtime.seed, settings.runtime.threads)
    fitted: dict[str, dict[str, Any]] = {name: {} for name in RECALIBRATIONS}
    metrics: dict[str, Any] = {}
    diagrams: dict[str, Predictions] = {}
    for kind, decisions in load_decisions(root, settings).items():
        metrics[kind] = {}
        for name, recalibration in RECALIBRATIONS.items():
            if not recalibration.supports(decisions.knowledge):
                continue
            best = recalibration.fit(decisions.knowledge, decisions.is_right, settings.calibrate)
            fitted[name][kind] = to_json(best)
            crossed = cross_fitted(recalibration, decisions, settings.calibrate)
            metrics[kind][name] = {
                "in_sample": decisions.predictions(best).values(),
                "cross_fitted": crossed.values(),
                "at_bound": is_at_bound(f"{kind} decisions, {name}", best, decisions, settings),
            }
            diagrams[f"{kind}: {name}"] = crossed
        interval = interval_of_temperature(decisions, settings)
        metrics[kind]["temperature"]["temperature"] = asdict(interval)
        numbers = f"{interval.value:.2f} ({interval.low:.2f}–{interval.high:.2f})"
        log.info("%s decisions, T = %s; cross-fitted:", kind, numbers)
        for line in table(metrics[kind]):
            log.info("  %s", line)
    with atomic_folder(root / "data/calibrate") as folder:
        for name, by_kind in fitted.items():
            write_json(folder / f"{name}.json", by_kind)
        write_json(folder / "metrics.json", metrics)
        save_reliability(folder / "reliability.png", diagrams)


def table(metrics: dict[str, Any]) -> list[str]:
    """Lines that compare the recalibrations on decisions they were not fitted to."""
    shown = ("accuracy", "ece", "nll", "brier", "aurc")
    lines = [f"{'':23}" + "".join(f"{name:>10}" for name in shown)]
    for name, found in metrics.items():
        numbers = found["cross_fitted"]
        lines.append(f"{name:23}" + "".join(f"{numbers[metric]:10.3f}" for metric in shown))
    return lines


@dataclass(frozen=True)
class Decisions:
    """R decisions of the teacher on the calibration split."""

    knowledge: Knowledge
    is_right: Tensor
    """[R, K], True at the right candidates."""
    ids: list[str]
    """[R] the example of each."""

    def __getitem__(self, rows: Tensor) -> Self:
        ids = [self.ids[row] for row in rows.tolist()]
        return type(self)(self.knowledge[rows], self.is_right[rows], ids)

    def predictions(self, recalibration: Recalibration) -> Predictions:
        gold = recalibration.gold_probability(self.knowledge, self.is_right)
        probabilities = recalibration.apply(self.knowledge)
        return Predictions(probabilities.numpy(), self.is_right.numpy(), gold.numpy())


def load_decisions(root: Path, settings: Settings) -> dict[Kind, Decisions]:
    """Return what is stored of each kind; raises ArtifactError where it is of something else."""
    tokenizer = load_tokenizer(root / "data/finetune")
    examples = read_examples(root / "data/prepare/calibration.parquet")
    questions = encode(examples, tokenizer, settings.prompt)
    made_from = knowledge_identity(root, "calibration")
    tokens = torch.tensor([token for q in questions for token in q.responses[q.gold or 0]])
    found: dict[Kind, Decisions] = {}
    kinds: list[Kind] = ["choice", "token"]
    for kind in kinds:
        folder = root / "data/extract/calibration" / kind
        if not folder.exists():
            continue
        store = KnowledgeStore(folder)
        store.check(made_from, questions)
        store.require("gold_logprob")
        knowledge = store.decoded()
        counts = store.starts.diff().tolist()
        of_each = [example for example, n in zip(examples, counts, strict=True) for _ in range(n)]
        is_right = knowledge.is_right(tokens) if kind == "token" else right(of_each, knowledge)
        found[kind] = Decisions(knowledge, is_right, [example.id for example in of_each])
    return found


def right(examples: Sequence[Example], knowledge: Knowledge) -> Tensor:
    return torch.from_numpy(right_choices(examples, knowledge.top_ids.shape[1]))


def cross_fitted(
    recalibration: type[Recalibration], decisions: Decisions, settings: CalibrateSettings
) -> Predictions:
    """Return predictions on each fold by what was fitted to the others.

    In-sample numbers favour whatever bends most: a step function of 175 decisions fits their
    chance, too.
    """
    fold_R = folds(decisions.ids)
    if fold_R.max() == 0:
        raise DataValidationError(
            f"data/prepare/calibration.parquet: only {decisions.ids[0]} has decisions of its kind; "
            "fitting a recalibration takes two examples at least, and dozens to be of use"
        )
    parts: dict[str, list[NDArray[Any]]] = {}
    for fold in np.unique(fold_R):
        inside = torch.from_numpy(fold_R == fold)
        others, these = decisions[(~inside).nonzero()[:, 0]], decisions[inside.nonzero()[:, 0]]
        best = recalibration.fit(others.knowledge, others.is_right, settings)
        for name, values in vars(these.predictions(best)).items():
            parts.setdefault(name, []).append(values)
    return Predictions(**{name: np.concatenate(values) for name, values in parts.items()})


def folds(ids: Sequence[str]) -> NDArray[np.int64]:
    """Return the fold of each decision: whole examples, dealt out in the order of their hashes."""
    dealt = sorted(set(ids), key=lambda identity: (unit_hash(identity), identity))
    fold_of = {identity: number % FOLDS for number, identity in enumerate(dealt)}
    return np.array([fold_of[identity] for identity in ids])


def is_at_bound(what: str, best: Recalibration, decisions: Decisions, settings: Settings) -> bool:
    """Return whether a parameter is at the bound of its search, and warn if so."""
    bound = best.at_bound(settings.calibrate)
    if bound is not None:
        correct = top_is_right(decisions.knowledge.top_logprobs, decisions.is_right)
        warn_at_bound(f"{what} on the calibration split", bound, correct)
    return bound is not None


def interval_of_temperature(decisions: Decisions, settings: Settings) -> Estimate:
    fitted = Temperature.fit(decisions.knowledge, decisions.is_right, settings.calibrate)
    _, example_R = np.unique(decisions.ids, return_inverse=True)
    return temperature_interval(
        fitted,
        decisions.knowledge,
        decisions.is_right,
        example_R,
        settings.calibrate,
        settings.runtime.seed,
    )


if __name__ == "__main__":
    run_stage(main, "calibrate")
