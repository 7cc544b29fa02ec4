"""The settings of params.yaml: every key, its type, its range and its meaning, in one place.

`load_settings` is the only reader. Stages pass a section (`settings.capture`) to the functions of
firstkd/ that need it, never the whole.
"""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.reader import ReaderError

from firstkd.data.settings import FetchSettings, PrepareSettings, PromptSettings, ValidateSettings
from firstkd.data.written import WriteSettings, check_written
from firstkd.errors import ConfigError
from firstkd.explained import explain, not_yaml
from firstkd.exports.kinds import AnyExport, check_exports
from firstkd.lineage import Lineage
from firstkd.measure.settings import EvaluateSettings
from firstkd.models.search_settings import SearchSettings
from firstkd.models.settings import ModelSettings
from firstkd.operation_settings import PromoteSettings, PublishSettings, RetrainSettings
from firstkd.recalibration.settings import CalibrateSettings
from firstkd.section import Name, Positive, RegisteredName, Section, listed
from firstkd.serving.settings import ServeSettings
from firstkd.signals.kinds import AnySignal
from firstkd.signals.settings import CaptureSettings
from firstkd.train.settings import MachineSettings, TrainingSettings


class RuntimeSettings(Section):
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    threads: Positive
    """CPU threads. Sums are split by thread, so another number changes the last digits."""


class RecordSettings(Section):
    experiment: Annotated[str, Field(min_length=1)]
    tracking_uri: Annotated[str, Field(min_length=1)]
    registered_model: RegisteredName
    student: Name
    """The model to register: one of `models` that learns and is evaluated."""


class Settings(Section):
    runtime: RuntimeSettings
    machine: MachineSettings
    prompt: PromptSettings
    fetch: FetchSettings
    prepare: PrepareSettings
    validate_: Annotated[ValidateSettings, Field(alias="validate")]
    models: Annotated[dict[Name, ModelSettings], Field(min_length=1)]
    signals: dict[Name, AnySignal]
    train: dict[Name, TrainingSettings]
    capture: CaptureSettings
    calibrate: CalibrateSettings
    evaluate: EvaluateSettings
    record: RecordSettings
    promote: PromoteSettings
    serve: ServeSettings
    retrain: RetrainSettings
    publish: PublishSettings
    write: Annotated[dict[Name, WriteSettings], Field(default_factory=dict)]
    """Data sets that a model writes, by name."""
    exports: Annotated[dict[Name, AnyExport], Field(default_factory=dict)]
    search: SearchSettings | None = None

    @cached_property
    def lineage(self) -> Lineage:
        return Lineage(self.models, self.signals)

    @property
    def teachers(self) -> list[str]:
        """Names of the models that the registered student learns from."""
        return self.lineage.teachers(self.record.student)

    @property
    def measured_models(self) -> list[str]:
        """Names of the models that are evaluated, without exports or ensembles."""
        return [name for name in self.evaluate.models if name in self.models]

    @property
    def measured_exports(self) -> list[str]:
        return [name for name in self.evaluate.models if name in self.exports]

    @property
    def student_exports(self) -> list[str]:
        """Names of the exports of the registered student."""
        return [name for name, export in self.exports.items() if export.of == self.record.student]

    @property
    def measured_ensembles(self) -> list[str]:
        return [name for name in self.evaluate.models if name in self.evaluate.ensembles]

    @model_validator(mode="after")
    def _ensembles_are_of_models(self) -> Self:
        here = {name for name, model in self.models.items() if not model.init.is_served}
        self.evaluate.check_ensembles(here, {*self.models, *self.exports})
        return self

    @model_validator(mode="after")
    def _exports_are_of_evaluated_models(self) -> Self:
        served = {name for name, model in self.models.items() if model.init.is_served}
        check_exports(self.exports, {*self.models}, {*self.measured_models}, served)
        return self

    @model_validator(mode="after")
    def _data_sets_are_no_splits(self) -> Self:
        if taken := {"train", "calibration", "test"} & self.fetch.datasets.keys():
            raise ValueError(f"fetch.datasets: {listed(taken)} is the name of a split")
        return self

    @model_validator(mode="after")
    def _what_is_written_comes_first(self) -> Self:
        first = {
            name
            for name, model in self.models.items()
            if name in self.lineage.roots and model.learn is None and not model.init.is_served
        }
        check_written(self.write, first, self.fetch.datasets)
        return self

    @model_validator(mode="after")
    def _folds_are_of_questions_as_they_are(self) -> Self:
        folded = [name for name, model in self.models.items() if model.leave_out]
        variants = [
            *(["prepare.augment"] if self.prepare.augment.is_asked_for else []),
            *(f"write.{name}.task" for name, of in self.write.items() if of.task == "paraphrase"),
        ]
        if folded and variants:
            raise ValueError(
                f"{variants[0]}: models.{folded[0]}.leave_out puts a question and its variants "
                "into different folds, so every teacher would see the question; use only one"
            )
        return self

    @model_validator(mode="after")
    def _coverage_is_of_a_policy(self) -> Self:
        if self.promote.min_coverage and self.serve.policy is None:
            raise ValueError(
                f"promote.min_coverage: {self.promote.min_coverage:g} needs serve.policy, which "
                "is null; set serve.policy, or this to 0"
            )
        return self

    @model_validator(mode="after")
    def _drops_are_of_measured_exports(self) -> Self:
        drop, measured = self.promote.max_export_drop, {*self.measured_exports}
        if drop is not None and not measured & {*self.student_exports}:
            raise ValueError(
                f"promote.max_export_drop: {drop:g} is set, but no export of record.student "
                f"({self.record.student}) is evaluated; add one to evaluate.models, or set null"
            )
        return self

    @model_validator(mode="after")
    def _search_is_of_models(self) -> Self:
        if self.search is not None:
            self.search.check(self.models, self.train)
        return self

    @model_validator(mode="after")
    def _own_text_can_be_written(self) -> Self:
        for name, model in self.models.items():
            if writes := model.on_policy:
                writes.check(f"models.{name}.on_policy", self.prompt)
        return self

    @model_validator(mode="after")
    def _decays_are_of_data_that_is_learned(self) -> Self:
        learned = {name for name, found in self.fetch.datasets.items() if found.is_learned}
        learned |= self.write.keys()
        for section, training in self.train.items():
            if unknown := set(training.schedule.data) - learned:
                raise ValueError(
                    f"train.{section}.schedule.data: {listed(unknown)} is not a data set that is "
                    f"learned from; allowed: {listed(learned)}"
                )
        return self

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        _ = self.lineage  # checks itself
        for name, model in self.models.items():
            if model.train is not None and model.train not in self.train:
                raise ValueError(
                    f"models.{name}.train: there is no section train.{model.train}; "
                    f"allowed: {listed(set(self.train))}"
                )
            if model.train and (
                why := model.init.cannot_train(self.train[model.train], self.machine)
            ):
                raise ValueError(f"models.{name}.train: {why}")
        for place, name in enumerate(self.evaluate.models):
            if name not in (known := {*self.models, *self.exports, *self.evaluate.ensembles}):
                raise ValueError(
                    f"evaluate.models.{place}: {name!r} is not among models, exports or "
                    f"evaluate.ensembles; allowed: {listed(known)}"
                )
        student = self.record.student
        if student not in self.measured_models:
            raise ValueError(
                f"record.student: {student!r} is not evaluated; add it to evaluate.models or "
                f"choose one of them: {listed(set(self.measured_models))}"
            )
        if not self.lineage.learns(student):
            raise ValueError(f"record.student: {student!r} learns nothing (models.{student})")
        return self


def load_settings(path: Path) -> Settings:
    """Read and check params.yaml.

    Raises ConfigError naming each wrong key, the value found and what is allowed.
    """
    try:
        values = YAML(typ="safe", pure=True).load(path.read_bytes().decode("utf-8-sig"))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ConfigError(
            f"{path} is missing or a folder; run from the project's folder"
        ) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}, line {line}: not UTF-8 ({error.reason}); save the file as UTF-8"
        ) from error
    except ReaderError as error:
        raise ConfigError(
            f"{path}: the character U+{error.character:04X} at position {error.position} is not "
            "allowed in YAML; remove it"
        ) from error
    except MarkedYAMLError as error:
        raise ConfigError(not_yaml(path, error)) from error
    if not isinstance(values, dict):
        found = "nothing" if values is None else type(values).__name__
        raise ConfigError(f"{path}: expected sections of settings, found {found}; restore the file")
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        problems = [explain(path, values, problem) for problem in error.errors()]
        raise ConfigError("\n".join(problems)) from error
