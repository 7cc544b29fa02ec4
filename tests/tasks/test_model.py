import shutil

import pytest
from firstkd.terms.settings import Arm
from tasks.distill import open_loss

from firstkd.data.examples import Example, read_examples, write_examples
from firstkd.data.prompts import encode
from firstkd.errors import ConfigError, DataValidationError
from firstkd.files import write_json
from firstkd.models.folders import load_tokenizer
from firstkd.settings import load_settings
from tasks import extract
from tests.tiny import HOMES, write_tiny_params


def captured(root, tiny_model, choices):
    """Capture six examples of each split, and return the training questions.

    Only token decisions are calibrated.
    """
    write_tiny_params(root)
    shutil.copytree(tiny_model, root / "data/finetune")
    for split in extract.SPLITS:
        examples = [
            Example(
                f"{split}/{number}", f"Tell {number}", "in a den", choices,
                None if choices is None else 0, "made", split,
            )
            for number in range(6)
        ]  # fmt: skip
        write_examples(root / f"data/prepare/{split}.parquet", examples)
    extract.main(root)
    write_json(root / "data/calibrate/none.json", {"token": {"kind": "none"}})
    examples = read_examples(root / "data/prepare/train.parquet")
    prompt = load_settings(root / "params.yaml").prompt
    return encode(examples, load_tokenizer(root / "data/finetune"), prompt)


def test_open_text_is_learned_from_tokens_alone(tmp_path, tiny_model):
    questions = captured(tmp_path, tiny_model, choices=None)
    loss = open_loss(tmp_path, "first", Arm(recalibration="none", tokens=1.0), questions)
    assert loss.choices is None and loss.tokens is not None


def test_choices_of_open_text_are_refused_by_the_setting(tmp_path, tiny_model):
    questions = captured(tmp_path, tiny_model, choices=None)
    arm = Arm(recalibration="none", choices=1.0, tokens=1.0)
    with pytest.raises(ConfigError, match=r"arms\.first\.choices: 1\.0, but no training question"):
        open_loss(tmp_path, "first", arm, questions)


def test_choices_that_nothing_was_fitted_to_are_refused(tmp_path, tiny_model):
    questions = captured(tmp_path, tiny_model, choices=tuple(HOMES.values())[:4])
    arm = Arm(recalibration="none", choices=1.0)
    with pytest.raises(DataValidationError, match=r"none\.json has nothing for choice decisions"):
        open_loss(tmp_path, "first", arm, questions)
