import shutil

import pytest

from firstkd.data.examples import Example, write_examples
from firstkd.errors import DataValidationError
from firstkd.files import read_json
from tasks.evaluate import main
from tests.tiny import HOMES, write_tiny_params


def choice(split, number):
    choices = tuple(HOMES.values())[:4]
    return Example(f"{split}/{number}", f"Where {number}?", choices[0], choices, 0, "made", split)


def text(split, number):
    return Example(f"{split}/t{number}", f"Tell {number}", "in a den", None, None, "made", split)


@pytest.fixture
def root(tmp_path, tiny_model):
    write_tiny_params(tmp_path)
    shutil.copytree(tiny_model, tmp_path / "data/model/teacher")
    (tmp_path / "data/prepare").mkdir()
    return tmp_path


def test_choices_are_measured_by_answer_and_open_text_by_token(root):
    for split in ("calibration", "test"):
        examples = [make(split, number) for number in range(6) for make in (choice, text)]
        write_examples(root / f"data/prepare/{split}.parquet", examples)
    main(root, "teacher")
    found = read_json(root / "data/evaluate/teacher/metrics.json")
    assert found["sets"]["test"]["examples"] == found["open_text"]["test"]["examples"] == 6
    assert found["open_text"]["test"]["tokens"] > 6
    assert 0 <= found["open_text"]["test"]["raw"]["ece"]["value"] <= 1


def test_open_text_alone_is_refused_by_the_file_that_lacks_choices(root):
    for split in ("calibration", "test"):
        examples = [text(split, number) for number in range(6)]
        write_examples(root / f"data/prepare/{split}.parquet", examples)
    with pytest.raises(
        DataValidationError, match=r"calibration.parquet: no questions with choices"
    ):
        main(root, "teacher")
