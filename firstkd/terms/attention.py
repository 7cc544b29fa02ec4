"""The term `attention`: how a question's tokens relate in their queries, keys and values."""

from typing import TYPE_CHECKING, ClassVar, Literal

from firstkd.data.prompts import Question
from firstkd.errors import ConfigError
from firstkd.models.needs import Projection
from firstkd.section import Positive
from firstkd.signals.base import Pairs, Signal
from firstkd.terms.base import Pairing, SignalTerm, Sum
from firstkd.terms.places import LayerMap, matched

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from firstkd.models.view import View
    from firstkd.signals.target import AnyTarget

OF: tuple[Literal["q", "k", "v"], ...] = ("q", "k", "v")


class Attention(SignalTerm):
    """Σ over queries, keys and values R of KL(softmax(R_T R_Tᵀ/√d) ‖ softmax(R_S R_Sᵀ/√d)).

    Mean over relation heads and pairs of layers, summed over all tokens; counts tokens (MiniLM v2,
    Wang et al. 2021, arXiv 2012.15828, eq. 4 to 6). R are the raw projections, before rotary
    embeddings and before any norm of queries or keys. A token relates to the tokens that it may
    attend to: those before it in the prompt and in its own response.
    """

    kind: Literal["attention"]
    decides: ClassVar[str] = "state"

    layers: LayerMap = "last"
    """`last`: the last layer of each model. `kept`: each layer of a student that has lost some,
    with the same layer of the other model. `uniform`: each layer with the one at the same share of
    the depth. Or pairs of layers, counted from 0: the student's and the other's."""
    heads: Positive = 8
    """Relation heads, into which queries, keys and values are all split, whatever the models' own
    numbers of heads (even with grouped queries); d is a relation head's width."""

    def misfit(self, signal: Signal) -> str | None:
        if not signal.is_live:
            return f"signals.{self.from_} is stored and holds no attention; set live: true there"
        return super().misfit(signal)

    def pairs(self, pairing: Pairing, key: str) -> Pairs:
        return [
            (Projection(ours, of), Projection(theirs, of))
            for ours, theirs in matched(self.layers, pairing, key, "layers")
            for of in OF
        ]

    def check_model(self, model: "PreTrainedModel") -> None:
        from firstkd.models.layers import decoder_layers, projection

        for layer in decoder_layers(model):
            for of in OF:
                width = projection(layer, of).weight.shape[0]
                if width % self.heads:
                    raise ConfigError(
                        f"heads: the {width} numbers of {of}_proj cannot be split into "
                        f"{self.heads} heads of equal width; set a divisor of {width}"
                    )

    def count(self, question: Question) -> int:
        return len(question.prompt) + sum(map(len, question.responses))

    def __call__(self, view: "View", name: str, target: "AnyTarget | None") -> Sum:
        import torch

        from firstkd.models.masks import seen_tokens
        from firstkd.signals.target import States
        from firstkd.terms.attention_relations import relation_kl

        assert isinstance(target, States)
        is_token, seen = view.batch.is_token_BL, seen_tokens(view.batch.segment_BL)
        losses = [
            relation_kl(view.states(place), wanted_TH, is_token, seen, self.heads)
            for place, wanted_TH in target.pairs
        ]
        layers = len(target.pairs) // len(OF)
        return Sum(torch.stack(losses).sum() / layers, view.batch.tokens, {})
