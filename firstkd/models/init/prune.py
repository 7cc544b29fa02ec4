"""A model that starts as another without the layers that matter least (depth pruning)."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from firstkd.errors import ConfigError
from firstkd.models.init.smaller import SmallerInit
from firstkd.section import Positive

if TYPE_CHECKING:
    from torch import Tensor

    from firstkd.data.prompts import Question

log = logging.getLogger(__name__)


class PruneInit(SmallerInit):
    kind: Literal["prune"]
    cuts_layers: ClassVar[bool] = True

    layers: Positive
    """Number of the other model's decoder layers to keep."""

    def layers_of(self, present: int, key: str = "") -> int:
        if self.layers > present:
            raise ConfigError(
                f"{key}layers: {self.layers}, but {self.of} has {present}; keep at most {present}"
            )
        return self.layers

    def kept(self, folder: Path) -> list[int]:
        from firstkd.files import read_json

        kept: list[int] = read_json(folder / "metrics.json")["kept"]
        return kept

    def check(self, model: Any) -> None:
        from firstkd.models.layers import decoder_layers

        decoder_layers(model)

    def cut(
        self, model: Any, questions: Sequence["Question"], probe_BL: "Tensor"
    ) -> tuple["Tensor", dict[str, Any]]:
        from firstkd.models.pruning import (
            block_influence,
            keep_layers,
            logits_without,
            most_influential,
        )

        present = model.config.num_hidden_layers
        self.layers_of(present)
        answered = [question.gold_only() for question in questions]
        influence = block_influence(model, answered, self.micro_batch_size, self.micro_batch_tokens)
        kept = most_influential(influence, self.layers)
        log.info("keeping layers %s of %d", kept, present)
        expected = logits_without(model, kept, probe_BL)
        keep_layers(model, kept)
        return expected, {"kept": kept, "influence": influence.tolist()}
