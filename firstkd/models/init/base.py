"""What all kinds of starts have in common. A start is also its own settings section."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from firstkd.data.settings import PromptSettings
from firstkd.section import Section

if TYPE_CHECKING:
    from firstkd.signals.base import Signal
    from firstkd.train.settings import MachineSettings, TrainingSettings


@dataclass(frozen=True)
class Given:
    """What a start can be made from."""

    project: Path
    """The project's folder, against which relative sources are resolved."""
    models: Mapping[str, Path]
    """Folders of other models, by name."""
    examples: Sequence[Path]
    """Files of prepared examples that models learn from, the labelled ones first."""
    prompt: PromptSettings


class Init(Section):
    kind: str
    reads_examples: ClassVar[bool] = False
    can_learn: ClassVar[bool] = False
    """Whether a model with this start may be trained; others are made once, and copied."""

    cuts_layers: ClassVar[bool] = False
    """Whether it lacks layers of the model it is made from."""
    starts_anew: ClassVar[bool] = False
    """Whether it has none of the weights of the model whose family it belongs to."""
    is_served: ClassVar[bool] = False
    """Whether its weights are elsewhere, so that it can give only stored signals."""
    origin: ClassVar[str] = "of"
    """The setting that names the model it is made from."""

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models that it is made from, or whose tokenizer it uses."""
        return ()

    def cannot_show(self, signal: "Signal") -> str | None:
        """Return why the model cannot give this signal, or None if it can."""
        return None

    def layers_of(self, present: int, key: str) -> int:
        """Return how many layers the model has if the one it is made from has `present`.

        Raises ConfigError, with `key` before the setting's name, if that is impossible.
        """
        return present

    def width_of(self, present: int) -> int:
        """Return the model's hidden size if that of the one it is made from is `present`."""
        return present

    def kept(self, folder: Path) -> list[int]:
        """Return which layers of the model it is made from are kept in the one in `folder`.

        Only for starts that cut layers.
        """
        raise NotImplementedError

    def check(self, model: Any) -> None:
        """Raise ArtifactError if this start cannot be made from a model of this family."""

    def cannot_train(self, training: "TrainingSettings", machine: "MachineSettings") -> str | None:
        """Return why the model cannot be trained with these settings, or None if it can."""
        return None

    def begin_training(self, scorer: Any) -> None:
        """Change what is trained, in place, before the optimizer exists."""

    def end_training(self, scorer: Any) -> None:
        """Turn what was trained into the model that is saved."""

    def make(self, folder: Path, given: Given) -> None:
        """Write the start as a model folder that transformers can load."""
        raise NotImplementedError
