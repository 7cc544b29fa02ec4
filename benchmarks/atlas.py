"""The atlas: what each kind of knowledge, scheme and loss adds to the plain recipe.

Every cell trains the default student of params.yaml once more with one thing changed (`CELLS` in
benchmarks/atlas_cells.py), by `dvc repro` in a separate project for each seed. Finished work is
kept, and the same command resumes after an interruption. After each cell, the table of all finished
ones is written to WORK/atlas.md, drawn in WORK/atlas.png, and their numbers are in
WORK/results.json. Cells that are in that file stay in it, so that machines can share the work: pass
each machine some of the `--cells`.

Values are means over seeds; intervals are 95 % bootstrap intervals over seeds and questions
together; differences are paired. Seconds count the training steps, bytes the signals that a cell
learns from. Prints one JSON line.

Run as  python -m benchmarks.atlas [--cells NAME …] [--seeds 3] [--work logs/atlas] [--params FILE]
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from tqdm import tqdm

from benchmarks import project
from benchmarks.arms import summary
from benchmarks.atlas_cells import CELLS, PLAIN, with_cells
from benchmarks.atlas_tables import save_differences, table
from firstkd.files import read_json, read_json_lines, write_json
from firstkd.settings import Settings, load_settings
from tasks.evaluated import Evaluated, load_evaluated
from tasks.layout import log_folder, signal_folder
from tasks.scores import plain


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.atlas")
    parser.add_argument("--cells", nargs="*", choices=CELLS, default=[*CELLS], metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("logs/atlas"))
    parser.add_argument("--params", type=Path, default=project.REPOSITORY / "params.yaml")
    given = parser.parse_args()
    work = given.work.resolve()
    chosen = [PLAIN, *(cell for cell in given.cells if cell != PLAIN)]
    results = work / "results.json"
    found: dict[str, Any] = read_json(results) if results.exists() else {}
    if other := {name for name, cell in found.items() if cell["seeds"] != given.seeds}:
        parser.error(f"{results} has cells of another number of seeds: {', '.join(sorted(other))}")
    roots = [work / f"seed-{seed}" for seed in range(given.seeds)]
    for seed, root in enumerate(roots):
        write_project(root, given.params, seed)
    with tqdm([(cell, root) for cell in chosen for root in roots], unit="model") as progress:
        for cell, root in progress:
            progress.set_description(f"{cell}, {root.name}")
            project.dvc(root, "repro", f"evaluate-{cell}")
            if root == roots[-1]:
                found[cell] = measured(roots, cell)
                write_json(results, found)
                (work / "atlas.md").write_text(table(found), encoding="utf-8")
                save_differences(work / "atlas.png", found)
    print(json.dumps(found))
    print(table(found), file=sys.stderr)


def write_project(root: Path, params: Path, seed: int) -> None:
    """Write a project with all cells; only the requested ones are trained."""
    settings = YAML().load(params)
    settings["runtime"]["seed"] = seed
    root.mkdir(parents=True, exist_ok=True)
    if (sources := params.parent / "sources").exists():
        shutil.copytree(sources, root / "sources", dirs_exist_ok=True)
    project.write(root, with_cells(settings))


def measured(roots: Sequence[Path], cell: str) -> dict[str, Any]:
    """Return a cell's test metrics, their differences from the plain recipe's, and its cost."""
    ours, theirs = (evaluated(roots, name) for name in (cell, PLAIN))
    found: dict[str, Any] = {"seeds": len(roots), "cost": cost(roots, cell)}
    for how in ("raw", "calibrated"):
        predictions, others = (
            [getattr(model, how)("test") for model in models] for models in (ours, theirs)
        )
        found[how] = plain(summary(predictions))
        if cell != PLAIN:
            found[f"{how}_less_plain"] = plain(summary(predictions, others))
    return found


def evaluated(roots: Sequence[Path], name: str) -> list[Evaluated]:
    found = []
    for root in roots:
        settings = load_settings(root / "params.yaml")
        alone = settings.evaluate.model_copy(update={"models": [name]})
        found.append(load_evaluated(root, settings.model_copy(update={"evaluate": alone}))[name])
    return found


def cost(roots: Sequence[Path], cell: str) -> dict[str, float | None]:
    """Return the mean seconds of the training steps, None if DVC's cache had them, and the bytes of
    the signals that the cell learns from; of an average or an ensemble, those of its parts."""
    settings, seconds = load_settings(roots[0] / "params.yaml"), list[float]()
    parts = trained(settings, cell)
    stages = [f"model-{'-'.join(settings.lineage.peers(part))}" for part in parts]
    for root in roots:
        curves = [log_folder(root, stage) / "curve.jsonl" for stage in stages]
        if all(curve.exists() for curve in curves):
            points = [point for curve in curves for point in read_json_lines(curve)]
            seconds.append(sum(p["step_tokens"] / p["tokens_per_second"] for p in points))
    learned = {name for part in parts for name in settings.models[part].signals}
    stored = sorted(learned.intersection(settings.lineage.stored))
    sizes = [read_json(signal_folder(roots[0], name) / "metrics.json") for name in stored]
    return {
        "seconds": sum(seconds) / len(seconds) if seconds else None,
        "bytes": sum(size["train"]["bytes"] for size in sizes),
    }


def trained(settings: Settings, cell: str) -> list[str]:
    """Return the models whose training a cell takes: itself, or the parts that it is made of."""
    if cell in settings.evaluate.ensembles:
        return list(settings.evaluate.ensembles[cell].models)
    model = settings.models[cell]
    return [cell] if model.learn is not None else list(model.init.models)


if __name__ == "__main__":
    main()
