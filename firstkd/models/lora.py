"""LoRA (Hu et al. 2021, arXiv 2106.09685): tune small matrices beside the weights, then merge."""

from typing import Any

from transformers import PreTrainedModel

from firstkd.models.settings import LoraSettings


def add_lora(model: PreTrainedModel, settings: LoraSettings) -> Any:
    """Put matrices beside all linear layers but the head, in place; then only they are trained.

    `merge_and_unload()` on the result makes it an ordinary model again.
    """
    from peft import LoraConfig, get_peft_model  # takes seconds, so import it only if used

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config, autocast_adapter_dtype=False)
