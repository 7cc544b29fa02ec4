"""Fold a temperature into the weights, so that every runtime gives calibrated probabilities.

The head is linear in the final norm's output: dividing the norm's weight (and bias) by T divides
all logits by T, even if the head shares its weights with the embedding. A soft cap, which follows
the head, and Gemma's norm, which multiplies by 1 + weight, make it inexact; a probe detects that.
"""

from typing import Any

import torch

from firstkd.models.folders import vocabulary_size

TOLERANCE = 1e-5
"""Largest difference allowed between logits, in float32, relative to the largest logit."""


@torch.inference_mode()
def fold_temperature(model: Any, temperature: float) -> bool:
    """Divide all logits of a model, in float32, by a temperature; return whether that is possible.

    If it is not, the model is left unchanged.
    """
    probe = torch.arange(min(16, vocabulary_size(model)))[None]
    before = model(input_ids=probe, use_cache=False).logits
    weights = [*final_norm(model.base_model).parameters()]
    kept = [weight.clone() for weight in weights]
    for weight in weights:
        weight.div_(temperature)
    after = model(input_ids=probe, use_cache=False).logits
    if (after * temperature - before).abs().max() <= TOLERANCE * before.abs().max():
        return True
    for weight, old in zip(weights, kept, strict=True):
        weight.copy_(old)
    return False


def final_norm(backbone: Any) -> Any:
    """Return the backbone's last direct child whose name marks it as a norm."""
    norms = [m for name, m in backbone.named_children() if "norm" in name or name == "ln_f"]
    return norms[-1] if norms else torch.nn.Identity()
