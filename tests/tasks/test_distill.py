import pytest

from firstkd.errors import ConfigError, DataValidationError
from firstkd.files import write_json
from firstkd.prompts import Question
from firstkd.settings import Arm
from tasks import distill
from tasks.distill import open_loss

OPEN_TEXT = [Question("a", [4, 5], [[6, 7]], 0)]


class OpenedStore:
    def __init__(self, folder):
        pass

    def check(self, identity, questions):
        pass


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A calibration of token decisions alone; what the store holds is not looked at here."""
    write_json(tmp_path / "data/calibrate/none.json", {"token": {"kind": "none"}})
    monkeypatch.setattr(distill, "KnowledgeStore", OpenedStore)
    monkeypatch.setattr(distill, "knowledge_identity", lambda root, split: {})
    return tmp_path


def test_open_text_is_learned_from_tokens_alone(root):
    loss = open_loss(root, "first", Arm(recalibration="none", tokens=1.0), OPEN_TEXT)
    assert loss.choices is None and loss.tokens is not None


def test_choices_of_open_text_are_refused_by_the_setting(root):
    arm = Arm(recalibration="none", choices=1.0, tokens=1.0)
    with pytest.raises(ConfigError, match=r"arms\.first\.choices: 1\.0, but no training question"):
        open_loss(root, "first", arm, OPEN_TEXT)


def test_choices_that_nothing_was_fitted_to_are_refused(root):
    arm = Arm(recalibration="none", choices=1.0)
    questions = [Question("b", [4], [[5], [6]], 0)]
    with pytest.raises(DataValidationError, match=r"none\.json has nothing for choice decisions"):
        open_loss(root, "first", arm, questions)
