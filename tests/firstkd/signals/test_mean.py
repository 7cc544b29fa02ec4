import pytest
import torch

from firstkd.errors import ArtifactError
from firstkd.signals.mean import Mean
from tests.firstkd.signals.stores import write_choices

MEAN = Mean(kind="mean", of=["a", "b", "c"])
NONE = -torch.inf


def logprobs(seed: int) -> torch.Tensor:
    """Of four questions: three choices, two, a single response that decides nothing, three."""
    values = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)) * 3
    values[1, 2] = values[2, 1] = values[2, 2] = NONE
    return values.log_softmax(-1)


def test_the_pooled_probabilities_are_the_mean_of_the_teachers(tmp_path):
    members = [logprobs(seed) for seed in range(3)]
    folders = [
        write_choices(tmp_path / str(place), member, range(4))
        for place, member in enumerate(members)
    ]
    pooled = MEAN.combine(folders)
    assert pooled.counts.tolist() == [3, 2, 0, 3]
    found = MEAN.decisions(pooled, {}).top_logprobs.exp()
    expected = torch.stack([member.double().exp() for member in members]).mean(0)
    torch.testing.assert_close(found.double(), expected[[0, 1, 3]], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found.sum(-1), torch.ones(3))


def test_a_teacher_pooled_with_itself_is_itself(tmp_path):
    folder = write_choices(tmp_path / "one", logprobs(5), range(4))
    found = MEAN.decisions(MEAN.combine([folder] * 3), {}).top_logprobs
    torch.testing.assert_close(found, logprobs(5)[[0, 1, 3]])


@pytest.mark.parametrize("keys", [[0, 1, 3, 2], [0, 1, 2, 9], [0, 1, 2]])
def test_stores_of_other_examples_are_refused(tmp_path, keys):
    first = write_choices(tmp_path / "first", logprobs(0), range(4))
    other = write_choices(tmp_path / "other", logprobs(1)[: len(keys)], keys)
    with pytest.raises(ArtifactError, match=r"other holds other examples than .*first; run its"):
        MEAN.combine([first, other])
