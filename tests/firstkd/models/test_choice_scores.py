import torch

from firstkd.models.choice_scores import choice_scores


def test_choice_scores_are_means_over_each_choices_tokens():
    logprobs = torch.tensor([-1.0, -2.0, -4.0, -5.0])
    mask = torch.tensor([[True, True, False]])
    scores = choice_scores(logprobs, torch.tensor([0, 1, 1, 1]), mask)
    torch.testing.assert_close(scores, torch.tensor([[-1.0, -11 / 3, -torch.inf]]))
