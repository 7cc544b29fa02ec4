"""The training curve: what each step showed, and how to watch it grow."""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from firstkd.errors import TrainingDivergedError
from firstkd.terms.base import Sum
from firstkd.train.distributed import Ranks

SPEEDS = {"step_tokens", "tokens_per_second"}
"""Columns of the live curve only, since they differ from run to run."""


class Part(NamedTuple):
    """A micro-batch's contribution to one of the step's numbers."""

    total: float
    units: int


class MicroBatchResult(NamedTuple):
    tokens: int
    losses: dict[str, Part]
    """Loss of each term."""
    measures: dict[str, Part]


def result_of(tokens: int, sums: Mapping[str, Sum]) -> MicroBatchResult:
    losses = {name: Part(found.total.item(), found.units) for name, found in sums.items()}
    measures = {
        f"{name}_{measure}": Part(total.item(), found.units)
        for name, found in sums.items()
        for measure, total in found.measures.items()
    }
    return MicroBatchResult(tokens, losses, measures)


def per_unit(parts: Iterable[Mapping[str, Part]]) -> dict[str, float]:
    """Add up the micro-batches' parts and divide by their units."""
    totals: defaultdict[str, float] = defaultdict(float)
    units: defaultdict[str, int] = defaultdict(int)
    for part in parts:
        for name, found in part.items():
            totals[name] += found.total
            units[name] += found.units
    return {name: total / max(1, units[name]) for name, total in totals.items()}


def check_finite(
    loss: float, norm: float, step: int, learning_rate: float, ids: Sequence[str]
) -> None:
    """Raise TrainingDivergedError, naming the step's examples, if loss or norm is not finite."""
    if math.isfinite(loss) and math.isfinite(norm):
        return
    raise TrainingDivergedError(
        f"step {step + 1}: loss {loss}, gradient norm {norm} at learning rate "
        f"{learning_rate:.3g}; lower learning_rate or look at the examples {', '.join(ids)}"
    )


@contextmanager
def shown_live(
    path: Path, so_far: Sequence[dict[str, float]], steps: int, ranks: Ranks
) -> Iterator[Callable[[dict[str, float]], None]]:
    """Yield a function that shows a point in a file and a progress bar, on the first process."""
    if not ranks.is_first:
        yield lambda point: None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    title = f"training {path.parent.name}"
    with (
        path.open("w", encoding="utf-8", buffering=1) as file,
        tqdm(total=steps, initial=len(so_far), desc=title, unit="step") as progress,
    ):
        file.writelines(json.dumps(point) + "\n" for point in so_far)

        def show(point: dict[str, float]) -> None:
            file.write(json.dumps(point) + "\n")
            speed = f"{point['tokens_per_second']:.0f}"
            progress.set_postfix(loss=f"{point['loss']:.3f}", tokens_per_s=speed)
            progress.update()

        yield show
