"""Search for a student's shape under a parameter budget: how many layers, and how wide.

Each candidate is `search.of` cut down, as wide as the budget allows at its number of layers. It
learns as `search.like` does, with a short section of `train`. Candidates are ranked by their NLL on
the calibration split at their own temperature; the test split is not read. Optuna chooses the
numbers of layers to try (the first at random, then TPE: Bergstra et al. 2011) and remembers them,
so an interrupted search resumes and gives the same result.

Reads   data/prepare/, and what `search.like` reads of data/model/, data/signal/, data/calibrate/
Writes  data/search/candidates.json, best first
Run as  python -m tasks.search   (once the models and signals that `search.like` reads exist)
"""

import logging
import shutil
from pathlib import Path
from typing import Any

import optuna
from ruamel.yaml import YAML

from firstkd.errors import ConfigError, about
from firstkd.files import sha256_of, write_json
from firstkd.models.folders import load_model
from firstkd.models.search import Shape
from firstkd.models.search_settings import SearchSettings
from firstkd.settings import Settings, load_settings
from firstkd.train.distributed import Ranks
from tasks import model
from tasks.answers import Asked
from tasks.choosing import score_all
from tasks.layout import learned_from, model_folder, prepared
from tasks.partial import partial_folder
from tasks.scores import own_temperature
from tasks.stage import run_program
from tasks.subject import Subject
from tasks.training import inputs_of

log = logging.getLogger(__name__)
CUT, START, CANDIDATE = "searched_cut", "searched_start", "searched"
"""Names of the models made for a candidate."""
MADE = ("prepare", "signal", "calibrate")
AT_RANDOM = 4
"""Trials drawn at random before TPE has enough to go by."""


def main(root: Path) -> None:
    settings = load_settings(root / "params.yaml")
    search = settings.search
    if search is None:
        raise ConfigError(
            "params.yaml: search: null; set of, like, train, max_parameters, min_layers and trials"
        )
    with about("params.yaml: search"):
        shape = Shape.of(load_model(model_folder(root, search.of), "fp32"))
        fewest, most = shape.depths(search.min_layers, search.max_parameters)
    made_from = identity(root, settings, search)
    folder = partial_folder(root / "data/.search", "shape", made_from, Ranks())
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=f"sqlite:///{folder / 'study.db'}", study_name="shape", load_if_exists=True
    )
    done = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    found = {trial.user_attrs["layers"]: trial.user_attrs for trial in done}
    depths: dict[str, optuna.distributions.BaseDistribution] = {
        "layers": optuna.distributions.IntDistribution(fewest, most)
    }
    for number in range(len(done), search.trials):
        # a sampler per trial, which ignores unfinished ones: what is tried next depends only on
        # the finished trials before
        study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=AT_RANDOM, constant_liar=False, seed=settings.runtime.seed + number
        )
        trial = study.ask(depths)
        layers = trial.params["layers"]
        if layers not in found:
            width = shape.widest(layers, search.max_parameters)
            found[layers] = candidate(root, folder, settings, search, layers, width)
        for key, value in found[layers].items():
            trial.set_user_attr(key, value)
        study.tell(trial, found[layers]["nll"])
        log.info("%d of %d: %s", number + 1, search.trials, found[layers])
    ranked = sorted(found.values(), key=lambda each: each["nll"])
    write_json(root / "data/search/candidates.json", ranked)
    best = ranked[0]
    log.info("best: %d layers of %d neurons", best["layers"], best["intermediate_size"])


def identity(root: Path, settings: Settings, search: SearchSettings) -> Any:
    """Return everything that decides the candidates, whichever are tried."""
    values = settings.model_dump(exclude={"machine", "record", "promote", "serve", "publish"})
    del values["search"]["trials"]  # a search with more trials resumes from one with fewer
    paths = [*learned_from(root, settings), prepared(root, "calibration")]
    paths += [model_folder(root, search.of), *inputs_of(root, settings, search.like)]
    return [values, [sha256_of(path) for path in paths]]


def candidate(
    root: Path, folder: Path, settings: Settings, search: SearchSettings, layers: int, width: int
) -> dict[str, Any]:
    """Make, train and measure one candidate, in its own project folder."""
    project = folder / f"{layers}"
    (project / "data/model").mkdir(parents=True, exist_ok=True)
    made = [Path("data", name) for name in MADE]
    made += [Path("data/model", name) for name in settings.models]
    for path in made:
        if (root / path).exists() and not (project / path).exists():
            (project / path).symlink_to((root / path).resolve())
    yaml = YAML()
    params = yaml.load(root / "params.yaml")
    models = params["models"]
    models[CUT] = {"init": {"kind": "prune", "of": search.of, "layers": layers}}
    models[START] = {"init": {"kind": "narrow", "of": CUT, "intermediate_size": width}}
    models[CANDIDATE] = {
        **models[search.like],
        "init": {"kind": "copy", "of": START},
        "train": search.train,
    }
    yaml.dump(params, project / "params.yaml")
    for name in (CUT, START, CANDIDATE):
        if not model_folder(project, name).exists():
            model.main(project, name)
    measured = model_folder(project, CANDIDATE)
    subject = Subject.load(f"{layers} layers", measured, settings.prompt, settings.evaluate)
    asked = Asked(prepared(root, "calibration"), has_choices=True)
    scored = score_all(subject, asked, subject.name)
    temperature = own_temperature(scored, settings.calibrate).temperature
    values = scored.predictions(temperature).values()
    parameters = subject.network.num_parameters()
    shutil.rmtree(project)  # gigabytes; only the results count
    return {
        "layers": layers,
        "intermediate_size": width,
        "parameters": parameters,
        "temperature": temperature,
        **{name: values[name] for name in ("nll", "accuracy", "ece", "aurc")},
    }


if __name__ == "__main__":
    run_program(main, "search", [])
