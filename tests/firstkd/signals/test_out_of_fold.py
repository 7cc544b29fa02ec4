import torch

from firstkd.data.examples import Example, example_key
from firstkd.models.settings import LeftOut
from firstkd.signals.out_of_fold import OutOfFold
from tests.firstkd.signals.stores import write_choices

SIGNAL = OutOfFold(kind="out_of_fold", of=["a", "b", "c"])
EXAMPLES = [Example(str(i), f"Question {i}?", "yes", ("yes", "no"), 0, "s") for i in range(60)]


def test_each_question_is_asked_of_the_teacher_that_left_it_out(tmp_path):
    members = [torch.tensor([[0.5 + i / 10, 0.5 - i / 10]]).log() for i in range(3)]
    keys = [example_key(example) for example in EXAMPLES]
    folders = [
        write_choices(tmp_path / str(i), member.expand(len(keys), 2).clone(), keys)
        for i, member in enumerate(members)
    ]
    records = SIGNAL.combine(folders)
    assert records.counts.tolist() == [2] * len(keys)
    asked = records.columns["logprob"].view(-1, 2)
    folds = [LeftOut(fold=i, of=3) for i in range(3)]
    for example, logprobs in zip(EXAMPLES, asked, strict=True):
        (unseen_by,) = [i for i, fold in enumerate(folds) if not fold.keeps(example)]
        assert torch.equal(logprobs, members[unseen_by][0])


def test_folds_share_out_the_examples_about_evenly():
    for fold in range(3):
        kept = sum(LeftOut(fold=fold, of=3).keeps(example) for example in EXAMPLES)
        assert 30 <= kept <= 50
