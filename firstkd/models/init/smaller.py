"""What all starts that leave something out of another model have in common."""

from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from firstkd.models.init.base import Given, Init
from firstkd.section import Name, Positive

if TYPE_CHECKING:
    from torch import Tensor

    from firstkd.data.prompts import Question


class SmallerInit(Init):
    reads_examples: ClassVar[bool] = True
    reordering: ClassVar[float] = 0.0
    """How much another order of summation may change its logits, as a share of the largest."""

    of: Name
    examples: Positive = 128
    """Training examples for measuring what matters least, the labelled ones first."""
    micro_batch_size: Positive = 32
    """Examples per forward pass, at most."""
    micro_batch_tokens: Positive = 8192
    """Tokens per forward pass, at most, padding included."""

    @property
    def models(self) -> tuple[str, ...]:
        return (self.of,)

    def cut(
        self, model: Any, questions: Sequence["Question"], probe_BL: "Tensor"
    ) -> tuple["Tensor", dict[str, Any]]:
        """Remove what matters least to these questions, in place.

        Returns the probe's logits [B, L, V] from the whole model when it skips what is removed,
        and what was measured, for metrics.json. Raises ConfigError if the model has less than
        should be kept.
        """
        raise NotImplementedError

    def make(self, folder: Path, given: Given) -> None:
        """Raise what `cut` raises, and ArtifactError if the saved model gives other logits."""
        import torch

        from firstkd.data.examples import read_examples
        from firstkd.data.prompts import encode
        from firstkd.files import write_json
        from firstkd.models.folders import load_model, load_tokenizer, save_model
        from firstkd.models.pruning import check_same_logits
        from firstkd.models.self_test import check_model

        base = given.models[self.of]
        tokenizer = load_tokenizer(base)
        # Rounded as it will be saved, so that the logits can be compared; in float32, since in
        # bfloat16 another order of summation changes them as much as a bug would.
        rounded: Any = load_model(base, "bf16")
        model = rounded.float()
        examples = list(
            islice(chain.from_iterable(map(read_examples, given.examples)), self.examples)
        )
        questions = encode(examples, tokenizer, given.prompt)
        probe_BL = torch.tensor([questions[0].prompt], device=model.device)
        expected, measured = self.cut(model, questions, probe_BL)
        save_model(model, tokenizer, folder)
        saved: Any = load_model(folder, "fp32")
        with torch.inference_mode():
            found = saved(input_ids=probe_BL.to(saved.device), use_cache=False).logits
        check_same_logits(expected, found, model.config.model_type, self.reordering)
        check_model(saved, tokenizer, questions)
        write_json(folder / "metrics.json", measured)
