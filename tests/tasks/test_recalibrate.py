"""`firstkd recalibrate`: which answers it uses, which it leaves out, and what it reports."""

import json
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from firstkd.data.examples import Example, write_examples
from firstkd.errors import DataValidationError
from firstkd.files import read_json
from tasks.corrections import recalibration_words
from tasks.evaluate import main as evaluate
from tasks.recalibrate import main, read_questions, without_seen
from tests.tiny import HOMES, write_tiny_params

CHOICES = tuple(HOMES.values())[:4]


def choice(split: str, number: int, prompt: str = "") -> Example:
    prompt = prompt or f"Where in {split} is {number}?"
    answer = number % 4
    return Example(f"{split}/{number}", prompt, CHOICES[answer], CHOICES, answer, "made", split)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    root = tmp_path_factory.mktemp("recalibrate")
    write_tiny_params(root)
    yaml = YAML()
    params = yaml.load(root / "params.yaml")
    params["serve"]["policy"] = {"max_error": 0.9, "confidence": 0.9}
    yaml.dump(params, root / "params.yaml")
    shutil.copytree(tiny_model, root / "data/model/teacher")
    for split in ("train", "calibration", "test", "ood_elsewhere"):
        examples = [choice(split, number) for number in range(12)]
        write_examples(root / f"data/prepare/{split}.parquet", examples)
    evaluate(root, "teacher")
    return root


def write(file: Path, *examples: Example) -> Path:
    rows = [{"question": e.prompt, "choices": e.choices, "answer": e.response} for e in examples]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def run(root: Path, questions: Path, output: Path) -> dict:
    evaluation = root / "data/evaluate/teacher"
    main(root, str(root / "data/model/teacher"), str(evaluation), str(questions), str(output))
    return {name: read_json(output / f"{name}.json") for name in ("metrics", "calibration")}


def test_fitted_to_its_own_calibration_questions_it_is_what_it_was(root, tmp_path):
    again = write(tmp_path / "again.jsonl", *(choice("calibration", n) for n in range(12)))
    found = run(root, again, tmp_path / "output")
    before = root / "data/evaluate/teacher"
    assert found["calibration"] == read_json(before / "calibration.json")
    metrics = read_json(before / "metrics.json")
    newer = found["metrics"].pop("recalibrated")
    assert found["metrics"] == metrics
    assert newer["questions"] == 12 and newer["temperature_before"] == metrics["temperature"]
    words = recalibration_words("v3", {**found["metrics"], "recalibrated": newer})
    assert words.startswith("fitted to 12 questions: v3's temperature changes from ")
    assert "v3's promise on them: " in words and "the promise was at most 90%" in words


def test_other_questions_give_another_temperature_and_reference(root, tmp_path):
    kept = read_json(root / "data/evaluate/teacher/calibration.json")
    longer = [choice("new", n, f"And where, pray, would {n} be?") for n in range(9)]
    found = run(root, write(tmp_path / "new.jsonl", *longer), tmp_path / "output")
    assert found["calibration"]["temperature"] != kept["temperature"]
    assert found["calibration"]["reference"]["characters"] == [len(e.prompt) for e in longer]
    assert found["calibration"]["prompt"] == kept["prompt"]
    assert (tmp_path / "output/predictions.parquet").exists()


def test_what_is_learned_from_or_tested_on_is_left_out_and_too_few_are_refused(root, tmp_path):
    seen = [choice(split, 3) for split in ("train", "test", "ood_elsewhere")]
    newer = [choice("new", 1), choice("calibration", 2)]
    shouted = Example("x", seen[1].prompt.upper(), CHOICES[0], CHOICES, 0, "made", "")
    file = write(tmp_path / "mixed.jsonl", *seen, *newer, shouted, newer[0])
    examples = read_questions(file)
    assert len(examples) == 5  # one that is there twice, or in capitals, counts once
    left = [e.prompt for e in without_seen(examples, root / "data/prepare")]
    assert left == [e.prompt for e in newer]
    with pytest.raises(DataValidationError, match=r"2 questions in no split but calibration"):
        run(root, file, tmp_path / "output")
    with pytest.raises(DataValidationError, match="missing: name a file"):
        run(root, tmp_path / "nowhere.jsonl", tmp_path / "output")
    assert not (tmp_path / "output").exists()
