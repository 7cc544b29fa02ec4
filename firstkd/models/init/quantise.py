"""Another model with quantised weights: as they are, or trained to make quantisation matter less.

Without `learn` this is post-training quantisation. With it, training sees the weights as the file
will store them (quantisation-aware distillation), and these are saved: a GGUF export with the same
`weights` is exactly what was trained.
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
    """As in an export of kind gguf: 8 or 4 bits, with a scale for every 32 weights of a row."""

    @property
    def models(self) -> tuple[str, ...]:
        return (self.of,)

    def cannot_train(self, training: "TrainingSettings", machine: "MachineSettings") -> str | None:
        if training.lora:
            return "lora adds unrounded values to rounded weights; set lora to null"
        if machine.zero_stage == 3:
            return (
                "machine.zero_stage: 3 leaves no process with whole rows to round; set it to 2 or "
                "less"
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
