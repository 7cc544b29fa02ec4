"""Write a model as one file for another runtime, with its temperature and prompt.

If every answer is a single token, the temperature is folded into the weights; otherwise it is
stored beside them (docs/edge.md).

Reads   data/model/MODEL/, data/evaluate/MODEL/
Writes  data/export/NAME/ (the file, firstkd.json, the tokenizer, README.md and answer.py)
Run as  python -m tasks.export NAME   (normally through `dvc repro export-NAME`)
"""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from firstkd.data.tokenising import starting_ids
from firstkd.errors import ConfigError, about
from firstkd.exports import reader
from firstkd.exports.base import Exported, end_ids
from firstkd.exports.card import Origin, card
from firstkd.files import atomic_folder, read_json, sha256_of, write_json
from firstkd.models.folders import load_model, load_tokenizer, vocabulary_size
from firstkd.models.folding import fold_temperature
from firstkd.reproducibility import deterministic
from firstkd.settings import Settings, load_settings
from tasks.layout import evaluation_folder, export_folder, model_folder
from tasks.stage import run_stage

log = logging.getLogger(__name__)

COMPANIONS = ("config.json", "generation_config.json")


def main(root: Path, name: str) -> None:
    settings = load_settings(root / "params.yaml")
    if name not in settings.exports:
        raise ConfigError(
            f"there is no exports.{name}; allowed: {', '.join(settings.exports) or 'none'}"
        )
    deterministic(settings.runtime.seed, settings.runtime.threads)
    export = settings.exports[name]
    source, evaluation = model_folder(root, export.of), evaluation_folder(root, export.of)
    measured = read_json(evaluation / "metrics.json")
    model, tokenizer = load_model(source, "fp32").cpu().eval(), load_tokenizer(source)
    calibration = read_json(evaluation / "calibration.json")
    with about(f"exports.{name}"):
        facts = facts_of(model, tokenizer, measured, calibration)
    exported = Exported(model, tokenizer, json.dumps(facts, sort_keys=True))
    with atomic_folder(export_folder(root, name)) as folder, about(f"exports.{name}"):
        tokenizer.save_pretrained(folder)
        for companion in COMPANIONS:
            if (source / companion).exists():
                shutil.copyfile(source / companion, folder / companion)
        export.write(exported, folder / export.file_name)
        shutil.copyfile(reader.__file__, folder / "answer.py")
        hashes = {name: sha256_of(folder / name) for name in (export.file_name, *export.beside)}
        write_json(folder / reader.FACTS, {**facts, "file": export.file_name, "sha256": hashes})
        text = card(name, export, origin(settings, export.of), facts, measured)
        (folder / "README.md").write_text(text, encoding="utf-8")


def facts_of(
    model: Any, tokenizer: Any, measured: dict[str, Any], calibration: dict[str, Any]
) -> dict[str, Any]:
    """Fold the temperature into the model if that is exact; return what must travel with it.

    Raises ConfigError for a model that was measured on open text alone.
    """
    temperature = calibration["temperature"]
    if temperature is None:
        raise ConfigError(
            "the model has no temperature because the calibration split has no questions with "
            "choices; add such questions to fetch.datasets, or remove the export"
        )
    # scores of several tokens are means of log-probabilities, which no weight can divide by T
    by_one_token = all("vocabulary" in found for found in measured["sets"].values())
    folded = by_one_token and fold_temperature(model, temperature)
    log.info(
        "T = %.3f is %s",
        temperature,
        "folded into the weights" if folded else "stored beside the weights",
    )
    return {
        "temperature": 1.0 if folded else temperature,
        "folded_temperature": temperature if folded else None,
        "prompt": calibration["prompt"],
        "choices": calibration["choices"],
        "policy": calibration["policy"],
        "start_ids": starting_ids(tokenizer),
        "end_ids": end_ids(model, tokenizer),
        "vocabulary": vocabulary_size(model),
        "parameters": model.num_parameters(),
    }


def origin(settings: Settings, model: str) -> Origin:
    root = settings.models[settings.lineage.root(model)].init
    return Origin(
        model=model,
        source=str(root.model_dump().get("source", "")),
        teachers=settings.lineage.teachers(model),
        data={
            **{name: data.source for name, data in settings.fetch.datasets.items()},
            **{name: f"written by {write.by}" for name, write in settings.write.items()},
        },
    )


if __name__ == "__main__":
    run_stage(main, "export", "name")
