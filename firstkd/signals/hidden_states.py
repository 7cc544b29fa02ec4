"""The signal `hidden_states`: a model's representation of each token, layer by layer."""

from typing import TYPE_CHECKING, ClassVar, Literal

from firstkd.data.prompts import Question
from firstkd.models.needs import Needs
from firstkd.signals.base import CapturedSignal, Pairs

if TYPE_CHECKING:
    from firstkd.models.view import View
    from firstkd.signals.columns import Layout
    from firstkd.signals.live import Running
    from firstkd.signals.store import Records
    from firstkd.signals.target import Source


class HiddenStates(CapturedSignal):
    """Live, it shows every layer. Stored, it is the output of the final norm, at 2 H bytes per
    token of all prompts and responses, which is why it is live by default."""

    kind: Literal["hidden_states"]
    needs: ClassVar[Needs] = Needs(choices=True, states=True)
    decides: ClassVar[str] = "state"
    has_token_ids: ClassVar[bool] = True

    live: bool = True

    def layout(self, vocabulary_size: int, hidden_size: int = 0) -> "Layout":
        import torch

        from firstkd.signals.columns import Column

        return {"state": Column(torch.bfloat16, hidden_size)}

    def source(self, watched: "Running", pairs: Pairs) -> "Source":
        from firstkd.signals.live import LiveStates

        return LiveStates(watched, tuple(pairs))

    def capture(self, view: "View", vocabulary_size: int) -> "Records":
        from firstkd.signals.store import Records

        states_TH = view.states(view.scorer.depth)
        return Records({"state": states_TH.cpu()}, view.batch.is_token_BL.sum(-1).cpu())

    def records_of(self, question: Question) -> int:
        from firstkd.data.packing import packed_length

        return packed_length(question)
