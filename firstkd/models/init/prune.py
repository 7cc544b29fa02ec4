"""A model that starts as another without the layers that matter least (depth pruning)."""

import logging
from pathlib import Path
from typing import Any, ClassVar, Literal

from firstkd.errors import ConfigError
from firstkd.models.init.base import Given, Init
from firstkd.section import Name, Positive

log = logging.getLogger(__name__)


class PruneInit(Init):
    kind: Literal["prune"]
    reads_examples: ClassVar[bool] = True
    cuts_layers: ClassVar[bool] = True

    of: Name
    layers: Positive
    """Of the other model's decoder layers, so many are kept."""
    examples: Positive = 128
    """Training examples on which each layer's influence is measured."""
    micro_batch_size: Positive = 32
    """Examples per forward pass, at most."""
    micro_batch_tokens: Positive = 8192
    """Tokens per forward pass, at most, padding included."""

    @property
    def models(self) -> tuple[str, ...]:
        return (self.of,)

    def layers_of(self, present: int, key: str = "") -> int:
        if self.layers > present:
            raise ConfigError(
                f"{key}layers: {self.layers}, but {self.of} has {present}; keep {present} at most"
            )
        return self.layers

    def kept(self, folder: Path) -> list[int]:
        from firstkd.files import read_json

        kept: list[int] = read_json(folder / "metrics.json")["kept"]
        return kept

    def check(self, model: Any) -> None:
        from firstkd.models.layers import decoder_layers

        decoder_layers(model)

    def make(self, folder: Path, given: Given) -> None:
        """Raise ConfigError if the model has fewer layers than are to be kept."""
        import torch

        from firstkd.data.examples import read_examples
        from firstkd.data.prompts import encode
        from firstkd.files import write_json
        from firstkd.models.folders import (
            DTYPES,
            load_model,
            load_tokenizer,
            precision_here,
            save_model,
        )
        from firstkd.models.pruning import (
            block_influence,
            check_same_logits,
            keep_layers,
            logits_without,
            most_influential,
        )
        from firstkd.models.self_test import check_model

        base = given.models[self.of]
        tokenizer = load_tokenizer(base)
        # rounded as it will be saved, so that the logits can be compared
        rounded: Any = load_model(base, "bf16")
        model = rounded.to(DTYPES[precision_here("auto")])
        present = model.config.num_hidden_layers
        self.layers_of(present)
        examples = read_examples(given.examples[0])[: self.examples]
        questions = encode(examples, tokenizer, given.prompt)
        answered = [question.gold_only() for question in questions]
        influence = block_influence(model, answered, self.micro_batch_size, self.micro_batch_tokens)
        kept = most_influential(influence, self.layers)
        log.info("keeping layers %s of %d", kept, present)
        probe = torch.tensor([questions[0].prompt], device=model.device)
        expected = logits_without(model, kept, probe)
        keep_layers(model, kept)
        save_model(model, tokenizer, folder)
        found = logits_without(load_model(folder), range(len(kept)), probe)
        check_same_logits(expected, found, model.config.model_type)
        check_model(load_model(folder, "fp32"), tokenizer, questions)
        write_json(folder / "metrics.json", {"kept": kept, "influence": influence.tolist()})
