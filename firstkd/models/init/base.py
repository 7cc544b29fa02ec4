"""What every kind of start has in common. A start is its own settings."""

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
    """Files of the prepared examples that models learn from, the labelled ones first."""
    prompt: PromptSettings


class Init(Section):
    kind: str
    reads_examples: ClassVar[bool] = False
    can_learn: ClassVar[bool] = False
    """Whether a model that starts so may be trained; the others are made once, and copied."""

    cuts_layers: ClassVar[bool] = False
    """Whether it lacks layers of the model that it is made from."""
    starts_anew: ClassVar[bool] = False
    """Whether it has nothing of the weights of the model whose family it is of."""
    is_served: ClassVar[bool] = False
    """Whether its weights are elsewhere, so that only stored signals can be of it."""
    origin: ClassVar[str] = "of"
    """The setting that names the model it is made from."""

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models that it is made from, or has the tokenizer of."""
        return ()

    def cannot_show(self, signal: "Signal") -> str | None:
        """Return why such a model cannot be asked for this signal, if so."""
        return None

    def layers_of(self, present: int, key: str) -> int:
        """Return how many layers a model has that starts so, from one that has `present`.

        Raises ConfigError, with `key` before the setting's name, if it cannot start so.
        """
        return present

    def width_of(self, present: int) -> int:
        """Return the hidden size of a model that starts so, from one that has `present`."""
        return present

    def kept(self, folder: Path) -> list[int]:
        """Return which layers of the model that it is made from are in the one in `folder`.

        Only for starts that cut layers.
        """
        raise NotImplementedError

    def check(self, model: Any) -> None:
        """Raise ArtifactError if nothing can start so from a model of this family."""

    def cannot_train(self, training: "TrainingSettings", machine: "MachineSettings") -> str | None:
        """Return why such a model cannot be trained with these settings, if so."""
        return None

    def begin_training(self, scorer: Any) -> None:
        """Change in place what is trained, before there is an optimizer."""

    def end_training(self, scorer: Any) -> None:
        """Make of what was trained the model that is saved."""

    def make(self, folder: Path, given: Given) -> None:
        """Write the start as a model folder that transformers can load."""
        raise NotImplementedError
