"""One forward pass of a model over a batch, and the results that are read from it."""

from collections.abc import Mapping, Sequence
from functools import cached_property

from torch import Tensor, nn

from firstkd.data.packing import Batch
from firstkd.models.choice_scores import choice_scores
from firstkd.models.head import HeadScores
from firstkd.models.needs import Place
from firstkd.models.scoring import Pass, ResponseScorer


class View:
    """The results of one pass, each computed when first read, and only once.

    `asked` maps the name of a term to the token ids [R, K] to score at each of the R tokens of the
    batch's right responses, or to how many of the most probable tokens. The first of them costs no
    extra pass over the head.
    `places` are where hidden states are read, and `modules` maps the name of a term to what it
    trains beside the model. `passed` is what the layers computed for the batch, if they have run
    already. `asks_vocabulary` requests mean and entropy over the vocabulary. `progress` is the
    share of the training's steps that are done.
    """

    def __init__(
        self,
        scorer: ResponseScorer,
        batch: Batch,
        asked: Mapping[str, Tensor | int] | None = None,
        places: Sequence[Place] = (),
        modules: Mapping[str, nn.ModuleList] | None = None,
        passed: Pass | None = None,
        asks_vocabulary: bool = False,
        progress: float = 0.0,
    ) -> None:
        self.scorer = scorer
        self.batch = batch
        self.progress = progress
        self.modules = modules or {}
        self._places = places
        self._asked = asked or {}
        self._names = [*self._asked] or [""]
        self._passed = passed
        self._asks_vocabulary = asks_vocabulary

    @cached_property
    def hidden_NH(self) -> Tensor:
        """Last hidden states at the supervised positions."""
        return self._states.hidden_NH

    def states(self, place: Place) -> Tensor:
        """Return the activations [T, H] of all tokens at one of `places`."""
        return self._states.at_places[place]

    @cached_property
    def _states(self) -> Pass:
        if self._passed is not None:
            return self._passed
        return self.scorer.states(self.batch, self._places)

    @cached_property
    def logprobs_M(self) -> Tensor:
        """Log-probabilities of the batch's scored tokens."""
        return self._heads[self._names[0]].logprobs_M

    @property
    def mean_logprobs_M(self) -> Tensor:
        """Mean log-probability of the whole vocabulary where the scored tokens are predicted."""
        return self._heads[self._names[0]].mean_logprob_N[self.batch.rows_M]

    @property
    def entropy_R(self) -> Tensor:
        """Entropy over the vocabulary at each token of right responses; without gradient."""
        rows_R = self.batch.rows_M[self.batch.is_gold_M]
        return self._heads[self._names[0]].entropy_N[rows_R]

    @cached_property
    def choice_scores_BC(self) -> Tensor:
        """Scores of each question's choices, −inf where it has no such choice."""
        batch = self.batch
        return choice_scores(self.logprobs_M, batch.response_of_M, batch.choice_mask_BC)

    @cached_property
    def gold_choices(self) -> tuple[Tensor, Tensor]:
        """Scores [D, C] of the D questions with several choices and a known right one, and that
        choice's index [D]."""
        decides_B = (self.batch.choice_mask_BC.sum(-1) > 1) & (self.batch.gold_B >= 0)
        return self.choice_scores_BC[decides_B], self.batch.gold_B[decides_B]

    def tokens(self, name: str) -> HeadScores:
        """Return the scores of the ids that were requested under this name."""
        return self._heads[name]

    @cached_property
    def _heads(self) -> dict[str, HeadScores]:
        batch, head = self.batch, self.scorer.head
        decisions_R = batch.rows_M[batch.is_gold_M]
        none_R = decisions_R[:0]
        found = {}
        for name in self._names:
            ids_RK = self._asked.get(name)
            is_first = name == self._names[0]
            found[name] = head(
                self.hidden_NH,
                batch.rows_M if is_first else batch.rows_M[:0],
                batch.targets_M if is_first else batch.targets_M[:0],
                none_R if ids_RK is None else decisions_R,
                none_R[:, None] if ids_RK is None else ids_RK,
                self._asks_vocabulary and is_first,
            )
        return found
