"""A model that is another with quantised weights: as they are, or trained so that it matters less.

Without `learn` this is quantisation after training. With it, training sees the weights as the file
will hold them (quantisation-aware distillation), and what is saved are those: an export as GGUF
with the same `weights` is exactly what was trained.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from firstkd.models.init.base import Given, Init
from firstkd.section import Name

if TYPE_CHECKING:
    from firstkd.train.settings import MachineSettings, TrainingSettings


class QuantiseInit(Init):
    kind: Literal["quantise"]
    can_learn: ClassVar[bool] = True

    of: Name
    weights: Literal["q8_0", "q4_0"]
    """As an export of kind gguf has them: 8 or 4 bits, with a scale for every 32 of a row."""

    @property
    def models(self) -> tuple[str, ...]:
        return (self.of,)

    def cannot_train(self, training: "TrainingSettings", machine: "MachineSettings") -> str | None:
        if training.lora:
            return "what lora adds to rounded weights is not rounded; set lora to null"
        if machine.zero_stage == 3:
            return (
                "machine.zero_stage: 3 leaves no process whole rows to round; set it to 2 or less"
            )
        return None

    def begin_training(self, scorer: Any) -> None:
        from firstkd.models.quantised import round_matrices

        round_matrices(scorer, self.weights)

    def end_training(self, scorer: Any) -> None:
        from firstkd.models.quantised import keep_rounded

        keep_rounded(scorer, self.weights)

    def make(self, folder: Path, given: Given) -> None:
        from firstkd.models.folders import load_model, load_tokenizer, save_model

        source = given.models[self.of]
        model = load_model(source, "fp32")
        self.begin_training(model)
        self.end_training(model)
        save_model(model, load_tokenizer(source), folder)
