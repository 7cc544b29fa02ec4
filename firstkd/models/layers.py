"""A model's decoder layers, and the hidden states that pass through them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from firstkd.errors import ArtifactError
from firstkd.models.needs import Place, Projection


def decoder_layers(model: Any) -> nn.ModuleList:
    """Return the list of all decoder layers, whatever the family calls it.

    Raises ArtifactError if no list, or more than one, could be it.
    """
    count = model.config.num_hidden_layers
    lists = {
        name: module
        for name, module in model.base_model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    }
    depth = min((name.count(".") for name in lists), default=0)
    outermost = [module for name, module in lists.items() if name.count(".") == depth]
    if len(outermost) != 1:
        raise ArtifactError(
            f"{model.config.model_type}: {len(outermost)} lists of {count} modules, instead of "
            "one, could be the decoder layers, so these can be neither removed nor read; choose "
            "another model"
        )
    return outermost[0]


def hidden_given(inputs: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    """Return the hidden states passed to a layer."""
    hidden: Tensor = inputs[0] if inputs else named["hidden_states"]
    return hidden


def projection(layer: nn.Module, of: str) -> Any:
    """Return the module that computes a layer's queries, keys or values.

    Raises ArtifactError if the family has no such module, e.g. because one computes all three.
    """
    wanted = f"{of}_proj"
    found = [module for name, module in layer.named_modules() if name.endswith(f".{wanted}")]
    if len(found) != 1:
        raise ArtifactError(
            f"{type(layer).__name__} has {len(found)} {wanted} modules instead of one, so its "
            "attention cannot be read; learn from hidden states instead (kinds hidden, relation, "
            "flow)"
        )
    return found[0]


@contextmanager
def states_watched(backbone: Any, places: Sequence[Place]) -> Iterator[dict[Place, Tensor]]:
    """Yield a dictionary that a forward pass in the body fills: activations [rows, L, H] by place.

    Place i is the input of layer i, as in transformers' `hidden_states`: 0 is the embedding. The
    last place, after the final norm, is the pass's own output and not included.
    """
    layers = decoder_layers(backbone) if places else nn.ModuleList()
    found: dict[Place, Tensor] = {}

    def given(place: Place) -> Any:
        return lambda _, inputs, named: found.update({place: hidden_given(inputs, named)})

    def made(place: Place) -> Any:
        return lambda _, inputs, output: found.update({place: output})

    hooks = [
        projection(layers[place.layer], place.of).register_forward_hook(made(place))
        if isinstance(place, Projection)
        else layers[place].register_forward_pre_hook(given(place), with_kwargs=True)
        for place in places
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
