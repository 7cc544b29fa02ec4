"""Check that the data and the models meet the settings, before the first long stage.

Nothing is read here: `validate` passes what it has read, for all models at once. A training checks
its own terms again, on the very questions that it learns from.
"""

from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firstkd.data.prompts import Question
from firstkd.errors import ConfigError, DataValidationError, about
from firstkd.models.settings import ModelSettings
from firstkd.settings import Settings
from firstkd.terms.base import Pairing
from firstkd.train.plan import micro_batches, number_of_steps

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MIN_DECIDED = 2
"""The fewest calibration examples that a signal must have decisions on: fewer cannot be
cross-fitted."""
SPLITS = ("calibration", "test")
"""The splits on which models are calibrated and measured."""


def check_terms(name: str, model: ModelSettings, questions: Sequence[Question]) -> None:
    """Raise ConfigError for a term that applies to no training question."""
    for term_name, term in (model.learn or {}).items():
        if not any(map(term.count, questions)):
            raise ConfigError(
                f"params.yaml: models.{name}.learn.{term_name}: no training question has what "
                f"{term.kind} compares (choices, or a right answer); remove the term, or add such "
                "questions to fetch.datasets"
            )


def check_training(settings: Settings, name: str, lengths: Sequence[int]) -> None:
    """Raise ConfigError if the questions make no step, or processes cannot share one evenly.

    `lengths` are the lengths, in tokens, of the questions that the model, or one trained together
    with it, learns from.
    """
    model = settings.models[name]
    if model.learn is None or model.train is None:
        return
    training = settings.train[model.train]
    count = sum(1 for _ in micro_batches(lengths, training, settings.runtime.seed, model.order))
    with about(f"params.yaml: train.{model.train}"):
        number_of_steps(count, training, settings.machine.all_processes)


def check_adapting(settings: Settings, with_choices: Collection[str]) -> None:
    """Raise ConfigError for a training that adapts to calibration questions that do not exist."""
    for name, model in settings.models.items():
        if model.adapts and "calibration" not in with_choices:
            raise ConfigError(
                f"params.yaml: models.{name}: its bandit, or a term such as adaptive_focal, adapts "
                "to how it answers data/prepare/calibration.parquet, which has no questions with "
                "choices; remove it, or add such questions to fetch.datasets"
            )


def check_shown(settings: Settings, root: str, model: "PreTrainedModel") -> None:
    """Raise ConfigError or ArtifactError if terms compare something that a model made elsewhere, or
    one derived from it, cannot show."""
    for name, learner in settings.models.items():
        for term_name, term in (learner.learn or {}).items():
            if term.signal is None:
                continue
            shown = (name, *settings.signals[term.signal].models)
            if root in map(settings.lineage.root, shown):
                with about(f"params.yaml: models.{name}.learn.{term_name}"):
                    term.check_model(model)


def check_vocabulary(settings: Settings, model: str, size: int) -> None:
    """Raise ConfigError for a signal that does not fit the vocabulary of a model made elsewhere."""
    for name, signal in settings.signals.items():
        if settings.lineage.root(settings.lineage.read_with(name)) == model:
            with about(f"params.yaml: signals.{name}"):
                signal.layout(size)


def check_signals(settings: Settings, decided: Mapping[str, Collection[str]]) -> None:
    """Raise ConfigError for a signal that cannot be recalibrated on the calibration questions.

    `decided` says, by the signal's name, what the questions that have what it decides are drawn
    with: themselves, a passage or a conversation; MIN_DECIDED are enough.
    """
    for name, signal in settings.lineage.recalibrated.items():
        if len(decided[name]) < MIN_DECIDED:
            alone = [f"only {one} has {signal.decides}s" for one in decided[name]]
            found = alone[0] if alone else f"no question has {signal.decides}s"
            raise ConfigError(
                f"params.yaml: signals.{name}: data/prepare/calibration.parquet has too little to "
                f"recalibrate it on: {found}, but {MIN_DECIDED} questions, conversations or "
                "passages are needed; add such questions to fetch.datasets, or remove the signal"
            )


def check_measured(
    settings: Settings,
    prepared: Path,
    with_choices: Collection[str],
    open_text: AbstractSet[str],
) -> None:
    """Raise DataValidationError if calibration and test have no kind of question in common.

    Raises ConfigError if prompt.max_length leaves no room to answer open text, for exports if
    either split has only open text, and for models that cannot answer all that is measured.
    """
    has_choices, is_open = (
        [split in kind for split in SPLITS] for kind in (with_choices, open_text)
    )
    if not all(has_choices) and not all(is_open):
        raise DataValidationError(
            f"{prepared / 'calibration'}.parquet and {prepared / 'test'}.parquet: one has only "
            "questions with choices, the other only open text (or nothing); confidence is fitted "
            "on one and measured on the other, so add a data set with role: split to "
            "fetch.datasets"
        )
    if settings.exports and not all(has_choices):
        raise ConfigError(
            "params.yaml: exports: an export answers by choosing, but the calibration or test "
            "split has no questions with choices to measure it on; remove the exports, or add such "
            "questions to fetch.datasets"
        )
    choosers = [
        name
        for name in settings.evaluate.models
        if name not in settings.models or settings.models[name].init.is_served
    ]
    measured = sorted(open_text - {"train", "calibration"})
    if choosers and is_open[0] and measured:
        raise ConfigError(
            f"params.yaml: evaluate.models: {choosers[0]!r} is measured by its choices alone, but "
            f"calibration and {measured[0]} have open text, too; remove it"
        )
    longest, room = settings.evaluate.open_text.max_new_tokens, settings.prompt.max_length
    if is_open[0] and longest > room // 2:
        raise ConfigError(
            f"params.yaml: evaluate.open_text.max_new_tokens: {longest} leaves too little of "
            f"prompt.max_length = {room} for the prompt; at most half is allowed"
        )


def check_exports(
    settings: Settings, configs: Mapping[str, Any], tokenizers: Mapping[str, Any]
) -> None:
    """Raise ConfigError for an export whose format cannot hold the model, or that is measured
    through a package that is not installed."""
    for name, export in settings.exports.items():
        with about(f"params.yaml: exports.{name}"):
            root = settings.lineage.root(export.of)
            export.check(configs[root], tokenizers[root])
            if name in settings.measured_exports and find_spec(export.runtime) is None:
                raise ConfigError(
                    f"measuring it needs {export.runtime}, which is not installed here; "
                    f"install it, or remove {name} from evaluate.models"
                )


def check_own_text(settings: Settings) -> None:
    """Raise ConfigError for own answers learned beside other signals, or not in chat format."""
    for name, signal in settings.signals.items():
        if signal.is_own_text and settings.prompt.format != "chat":
            raise ConfigError(
                f"params.yaml: signals.{name}: a server answers in its model's chat template, but "
                f"students would read {settings.prompt.format}; set prompt.format to chat"
            )
    for name, model in settings.models.items():
        own = [of for of in model.signals if settings.signals[of].is_own_text]
        if own and len(model.signals) > 1:
            others = ", ".join(f"signals.{of}" for of in model.signals if of != own[0])
            raise ConfigError(
                f"params.yaml: models.{name}.learn: signals.{own[0]} is about answers that its "
                f"model wrote, {others} about other answers; use separate models"
            )


def check_averages(settings: Settings) -> None:
    """Raise ConfigError for averages of models that were not trained from the same start."""

    def start(name: str) -> str:
        init = settings.models[name].init
        return start(init.models[0]) if init.can_learn else name

    for name, model in settings.models.items():
        for other in model.init.models[1:]:
            first = model.init.models[0]
            if start(other) != start(first):
                raise ConfigError(
                    f"params.yaml: models.{name}.init.of: {first!r} starts from {start(first)!r}, "
                    f"{other!r} from {start(other)!r}; name models trained from the same start"
                )


def check_layers(settings: Settings, layers: Mapping[str, int], widths: Mapping[str, int]) -> None:
    """Raise ConfigError if a start needs, or a term compares, layers that do not exist.

    `layers` and `widths` are those of the models that were made elsewhere.
    """
    found = dict(layers)

    def of(name: str) -> int:
        if name not in found:
            init = settings.models[name].init
            found[name] = init.layers_of(of(init.models[0]), f"params.yaml: models.{name}.init.")
        return found[name]

    def width(name: str) -> int:
        init = settings.models[name].init
        return init.width_of(width(init.models[0])) if name not in widths else widths[name]

    for name in settings.models:
        of(name)
    for name, model in settings.models.items():
        for term_name, term in (model.learn or {}).items():
            if term.signal is None:
                continue
            for other in settings.signals[term.signal].models:
                lines_up = settings.lineage.cuts(name, other) is not None
                pairing = Pairing(
                    layers=(found[name], found[other]),
                    widths=(width(name), width(other)),
                    kept=range(found[name]) if lines_up else None,
                )
                term.pairs(pairing, f"params.yaml: models.{name}.learn.{term_name}")
