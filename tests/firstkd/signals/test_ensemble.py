import torch

from firstkd.data.examples import Example
from firstkd.data.prompts import Question
from firstkd.signals.ensemble import Ensemble
from firstkd.signals.mean import Mean
from firstkd.terms.choice_kl import ChoiceKl
from firstkd.terms.dirichlet import Dirichlet
from tests.firstkd.signals.stores import CHOICES, write_choices

ENSEMBLE = Ensemble(kind="ensemble", of=["a", "b", "c"])
CHOICES_OF = (("x", "y", "z"), ("x", "y"), ("x",))
QUESTIONS = [Question(str(n), [1], [[2]] * n, 0) for n in map(len, CHOICES_OF)]


def logprobs(seed: int) -> torch.Tensor:
    """Of the questions: three choices, two, a single response that decides nothing."""
    values = torch.randn(3, 3, generator=torch.Generator().manual_seed(seed))
    values[1, 2] = values[2, 1:] = -torch.inf
    return values.log_softmax(-1)


def combined(tmp_path):
    folders = [write_choices(tmp_path / str(seed), logprobs(seed), range(3)) for seed in range(3)]
    return ENSEMBLE.combine(folders)


def test_a_question_has_one_decision_a_member_in_the_order_of_the_members(tmp_path):
    records = combined(tmp_path)
    assert records.counts.tolist() == [*map(ENSEMBLE.records_of, QUESTIONS)] == [9, 6, 0]
    assert [*map(ENSEMBLE.decisions_of, QUESTIONS)] == [3, 3, 0]
    found = ENSEMBLE.decisions(records, {}).top_logprobs
    expected = [logprobs(seed)[question] for question in (0, 1) for seed in range(3)]
    torch.testing.assert_close(found, torch.stack(expected))


def test_each_members_decision_is_right_where_the_answer_is(tmp_path):
    examples = [
        Example(str(n), "?", choices[-1], choices, len(choices) - 1, "s")
        for n, choices in enumerate(CHOICES_OF)
    ]
    decisions = ENSEMBLE.decisions(combined(tmp_path), {})
    found = ENSEMBLE.is_right(decisions, examples, QUESTIONS)
    assert found.tolist() == [[False, False, True]] * 3 + [[False, True, False]] * 3


def test_only_the_term_dirichlet_learns_from_disagreement():
    signals = {"a": CHOICES, "b": CHOICES, "c": CHOICES}
    assert ENSEMBLE.check(signals, {}) is None
    dirichlet = Dirichlet(**{"kind": "dirichlet", "from": "all"})
    choices = ChoiceKl(**{"kind": "choice_kl", "from": "all"})
    assert dirichlet.misfit(ENSEMBLE) is None
    message = "it compares choices, but signals.all holds members' choices"
    assert choices.misfit(ENSEMBLE) == message
    assert "signals.all holds choices" in dirichlet.misfit(CHOICES)
    pooled = Mean(kind="mean", of=["all", "a"])
    assert "'all' is a signal of members' choices" in pooled.check({**signals, "all": ENSEMBLE}, {})
