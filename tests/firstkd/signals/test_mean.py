import pytest
import torch

from firstkd.errors import ArtifactError
from firstkd.recalibration.temperature import Temperature
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


def test_confident_teachers_count_more_at_their_own_temperatures(tmp_path):
    weighted = MEAN.model_copy(update={"weights": "confidence"})
    members, temperatures = [logprobs(seed) for seed in range(3)], (0.5, 1.0, 3.0)
    folders = [
        write_choices(tmp_path / str(place), member, range(4))
        for place, member in enumerate(members)
    ]
    pooled = weighted.combine(folders, [Temperature(each) for each in temperatures])
    assert pooled.counts.tolist() == [3, 2, 0, 3]
    found = weighted.decisions(pooled, {}).top_logprobs.exp()
    for row, question in enumerate([0, 1, 3]):
        exists = members[0][question].isfinite()
        said = [
            (member[question, exists].double() / temperature).softmax(-1)
            for member, temperature in zip(members, temperatures, strict=True)
        ]
        sure = torch.stack([torch.distributions.Categorical(q).entropy().neg().exp() for q in said])
        expected = (sure[:, None] * torch.stack(said)).sum(0) / sure.sum()
        kept = found[row, : len(expected)].double()
        torch.testing.assert_close(kept, expected, rtol=1e-6, atol=1e-7)


def test_equally_confident_teachers_weigh_the_same(tmp_path):
    """The same probabilities in another order."""
    turned = logprobs(0).clone()
    turned[[0, 3]] = turned[[0, 3]].flip(-1)
    turned[1, :2] = turned[1, :2].flip(-1)
    folders = [
        write_choices(tmp_path / str(place), member, range(4))
        for place, member in enumerate([logprobs(0), turned])
    ]
    weighted = MEAN.model_copy(update={"weights": "confidence"})
    found = weighted.combine(folders, [Temperature(2.0)] * 2).columns["logprob"].exp()
    halves = [member.div(2).log_softmax(-1).exp() for member in (logprobs(0), turned)]
    mean = (halves[0] + halves[1])[[0, 1, 3]] / 2
    torch.testing.assert_close(found, mean[mean > 0])


@pytest.mark.parametrize("keys", [[0, 1, 3, 2], [0, 1, 2, 9], [0, 1, 2]])
def test_stores_of_other_examples_are_refused(tmp_path, keys):
    first = write_choices(tmp_path / "first", logprobs(0), range(4))
    other = write_choices(tmp_path / "other", logprobs(1)[: len(keys)], keys)
    with pytest.raises(ArtifactError, match=r"other has different examples from .*first; run its"):
        MEAN.combine([first, other])
