"""The settings of params.yaml: every key, its type, its range and its meaning, in one place.

`load_settings` is the only reader. Stages hand a section (`settings.distill`) to the functions
that need it, never the whole.
"""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from firstkd.data.settings import FetchSettings, PrepareSettings, PromptSettings, ValidateSettings
from firstkd.errors import ConfigError
from firstkd.measure.settings import EvaluateSettings
from firstkd.models.settings import PruneSettings
from firstkd.recalibration.settings import CalibrateSettings
from firstkd.section import Name, Positive, Section, Share, listed
from firstkd.signals.settings import ExtractSettings
from firstkd.terms.settings import Arm
from firstkd.train.settings import FinetuneSettings, TrainingSettings


class RuntimeSettings(Section):
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    threads: Positive
    """CPU threads. Sums are split by thread, so another number gives other last digits."""


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
    stop_seconds: Annotated[float, Field(gt=0)]
    """Between SIGTERM and SIGKILL for a stage that is ended early, e.g. to save a checkpoint."""
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
            raise ValueError(f"fetch.datasets: {listed(taken)} is the name of a split")
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
                    f"evaluate.models.{name}: {folder!r} is no model; allowed: {listed(folders)}"
                )
        if (
            missing := folders
            - {"fetch/base", "finetune", "prune"}
            - set(self.evaluate.models.values())
        ):
            raise ValueError(f"evaluate.models must name every arm; missing: {listed(missing)}")
        if self.record.arm not in self.arms:
            raise ValueError(
                f"record.arm: {self.record.arm!r} is no arm; allowed: {listed(set(self.arms))}"
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
