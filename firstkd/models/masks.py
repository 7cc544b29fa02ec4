"""Which tokens of a packed row may attend to which, for each kind of attention layer.

A custom mask replaces the model's, so in layers with a sliding window it must include the window.
Distances are counted in positions, which restart with each response, not in places within the row,
so a response sees as much of the prompt and itself as it would alone.
"""

from typing import Any

import torch
from torch import Tensor

from firstkd.data.packing import PROMPT

WINDOW = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
"""Kinds of layers that do not see all preceding tokens, and the config key of their window size."""
ATTENTION = {"full_attention", *WINDOW}
"""Kinds of layers whose view the mask determines completely."""


def layer_kinds(config: Any) -> set[str]:
    """Return a model's kinds of layers; if the config does not list them, all are of one kind."""
    if kinds := getattr(config, "layer_types", None):
        return set(kinds)
    return {"sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"}


def can_pack(config: Any, is_stateful: bool, takes_positions: bool) -> bool:
    """Whether several responses can share a row, each as if it alone followed the prompt.

    They cannot if layers carry state from token to token (recurrent, convolutional), or if
    distances are those within the row (ALiBi, no positions to pass).
    """
    return (
        not is_stateful
        and takes_positions
        and layer_kinds(config) <= ATTENTION
        and not getattr(config, "alibi", False)
    )


def seen_tokens(segment_BL: Tensor) -> Tensor:
    """[B, L, L], True where the row's token sees the column's: the prompt and its own response,
    up to itself."""
    length = segment_BL.shape[1]
    query, key = segment_BL[:, :, None], segment_BL[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=segment_BL.device).tril()
    return causal & ((key == query) | (key == PROMPT))


def attention_masks(
    config: Any, segment_BL: Tensor, position_ids_BL: Tensor, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """Return what to add to the attention scores [B, 1, L, L]; a dictionary if layers differ.

    transformers' models use a four-dimensional mask as is; those with several kinds of layers take
    one for each kind. `segment_BL` is the batch's (firstkd/data/packing.py).
    """
    seen = seen_tokens(segment_BL)
    masks = {}
    for kind in sorted(layer_kinds(config)):
        visible = seen
        if kind in WINDOW:
            size = getattr(config, WINDOW[kind])
            at, of = position_ids_BL[:, :, None], position_ids_BL[:, None, :]
            near = at - of < size if kind == "sliding_attention" else at // size == of // size
            visible = seen & near
        hidden = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        masks[kind] = hidden.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]
    return masks if len(masks) > 1 else masks.popitem()[1]
