import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from ruamel.yaml import YAML

from firstkd.answering import Answerer
from firstkd.data.examples import Example, read_examples, write_examples
from firstkd.errors import DataValidationError
from firstkd.files import read_json
from firstkd.measure.metrics import METRICS
from firstkd.open_text.calibration import Calibration
from firstkd.open_text.metrics import token_f1
from firstkd.settings import load_settings
from tasks.evaluate import main
from tasks.evidence import Evidence
from tasks.gate import _guesses
from tasks.graph import write_graph
from tasks.remeasure import main as remeasure
from tasks.scores import Scored, measured, own_temperature
from tests.tiny import HOMES, REPOSITORY, open_questions, write_tiny_params


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
    assert found["sets"]["test open text"]["examples"] == 6 and "text" not in found["sets"]["test"]
    assert found["open_text"]["test"]["tokens"] > 6
    assert 0 <= found["open_text"]["test"]["raw"]["ece"]["value"] <= 1


def test_a_model_is_not_measured_on_what_it_was_not_calibrated_on(root):
    for split, make in (("calibration", text), ("test", choice)):
        examples = [make(split, number) for number in range(6)]
        write_examples(root / f"data/prepare/{split}.parquet", examples)
    with pytest.raises(DataValidationError, match=r"test.parquet: no questions like those of"):
        main(root, "teacher")


@pytest.fixture(scope="module")
def wrote(tmp_path_factory, talker):
    """Open text alone, answered by a model that can, under a policy."""
    root = tmp_path_factory.mktemp("wrote")
    write_tiny_params(root)
    yaml = YAML()
    params = yaml.load(root / "params.yaml")
    params["serve"]["policy"] = {"max_error": 0.4, "confidence": 0.9}
    params["evaluate"]["open_text"].update(max_new_tokens=12, right_from=0.9)
    yaml.dump(params, root / "params.yaml")
    shutil.copytree(talker, root / "data/model/teacher")
    (root / "data/prepare").mkdir()
    examples = open_questions(96, seed=1)
    for split, part in (("calibration", examples[:48]), ("test", examples[48:])):
        write_examples(
            root / f"data/prepare/{split}.parquet", [replace(e, split=split) for e in part]
        )
    main(root, "teacher")
    return root


def test_open_text_is_answered_in_the_models_own_words_and_judged(wrote):
    found = read_json(wrote / "data/evaluate/teacher/metrics.json")
    rows = pq.read_table(wrote / "data/evaluate/teacher/predictions.parquet").to_pylist()
    test = found["sets"]["test"]
    assert found["temperature"] is None and test["examples"] == len(rows) == 48
    right = [row["given"] == row["answer"] for row in rows]
    assert 0 < sum(right) < 48
    assert test["text"]["exact_match"]["value"] == pytest.approx(sum(right) / 48)
    assert test["text"]["token_f1"]["low"] <= test["text"]["token_f1"]["value"]
    assert test["raw"]["accuracy"]["value"] == np.mean([row["correct"] for row in rows])
    assert [row["correct"] for row in rows] == [
        token_f1(row["given"], row["answer"]) >= 0.9 for row in rows
    ]
    assert test["calibrated"]["nll"]["value"] < test["raw"]["nll"]["value"]
    assert all(row["scores"] == [] and row["predicted_index"] == -1 for row in rows)


def test_what_was_fitted_to_own_words_is_kept_with_its_promise(wrote):
    kept = read_json(wrote / "data/evaluate/teacher/calibration.json")
    assert (kept["temperature"], kept["choices"], kept["policy"]) == (None, None, None)
    words = kept["open_text"]
    fitted = Calibration.from_json(words["calibration"])
    rows = pq.read_table(wrote / "data/evaluate/teacher/predictions.parquet").to_pandas()
    sure = rows["calibrated_confidence"].to_numpy()
    np.testing.assert_allclose(fitted(rows["confidence"].to_numpy()), sure)
    assert words["policy"]["questions"] == 48 and words["policy"]["answered"] > 0
    under = read_json(wrote / "data/evaluate/teacher/metrics.json")["sets"]["test"]["policy"]
    assert under["coverage"]["value"] == (sure >= words["policy"]["threshold"]).mean()


PARTS = [{"kind": "spread", "host_gb": 1e-5}, {"kind": "sharded"}]


@pytest.mark.slow
@pytest.mark.parametrize("placement", PARTS, ids=lambda placement: placement["kind"])
def test_a_model_in_parts_is_measured_as_a_whole_one(wrote, tmp_path, placement):
    for part in ("model", "prepare"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / part).symlink_to(wrote / "data" / part)
    params = YAML().load(wrote / "params.yaml")
    params["machine"].update(processes=2, placement=placement)
    YAML().dump(params, tmp_path / "params.yaml")
    write_graph(tmp_path, load_settings(tmp_path / "params.yaml"))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "tasks.evaluate", "teacher"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    for name in ("predictions.parquet", "metrics.json", "calibration.json"):
        found = (tmp_path / "data/evaluate/teacher" / name).read_bytes()
        assert found == (wrote / "data/evaluate/teacher" / name).read_bytes()


def test_a_registered_writer_is_measured_again_as_it_was(wrote, tmp_path):
    calibration, out = wrote / "data/evaluate/teacher/calibration.json", tmp_path / "out"
    remeasure(wrote, str(wrote / "data/model/teacher"), str(calibration), str(out))
    before = (wrote / "data/evaluate/teacher/predictions.parquet").read_bytes()
    assert (out / "predictions.parquet").read_bytes() == before
    predictions = pd.read_parquet(out / "predictions.parquet")
    again = Evidence("1", "", **read_json(out / "metrics.json"), predictions=predictions)
    assert again.is_complete
    assert again.served("test").values()["nll"] == pytest.approx(again.metric("nll"))
    assert list(_guesses(again.of_set("test"))) == ["always giving the most frequent answer"]


def test_a_served_writer_answers_with_its_calibrated_confidence(wrote):
    """As evaluate did, and with the threshold that it promised."""
    evaluated = wrote / "data/evaluate/teacher"
    answerer = Answerer.load(wrote / "data/model/teacher", evaluated / "calibration.json")
    rows = pq.read_table(evaluated / "predictions.parquet").to_pylist()[:8]
    asked = {e.id: e.prompt for e in read_examples(wrote / "data/prepare/test.parquet")}
    found = answerer.answer([asked[row["id"]] for row in rows], [None] * 8)
    assert [answer.answer for answer in found] == [row["given"] for row in rows]
    sure = [row["calibrated_confidence"] for row in rows]
    assert [answer.confidence for answer in found] == pytest.approx(sure, rel=1e-4)
    promise = answerer.thresholds[0].promise
    assert all(answer.abstain == (answer.confidence < promise.threshold) for answer in found)
    with pytest.raises(DataValidationError, match="calibrated on open text alone"):
        answerer.answer(["Where does the red fox live?"], [["in a den", "in a hive"]])


def test_an_answer_whose_text_is_the_right_ones_counts_as_right(root):
    """Of choices a, b, b the last is marked; whichever b the model gives, it gives the answer."""
    den, hive = list(HOMES.values())[:2]
    asked = [((den, hive, hive), 2), ((den, den, hive), 1), ((hive, den, hive), 2)]
    for split in ("calibration", "test"):
        examples = [
            Example(f"{split}/{n}", f"Where {n}?", choices[marked], choices, marked, "made", split)
            for n in range(6)
            for choices, marked in [asked[n % 3]]
        ]
        write_examples(root / f"data/prepare/{split}.parquet", examples)
    main(root, "teacher")
    rows = pq.read_table(root / "data/evaluate/teacher/predictions.parquet").to_pylist()
    right = [[False, True, True], [True, True, False], [True, False, True]]
    assert [row["is_right"] for row in rows[:3]] == right
    # equal texts have equal scores, of which the first is taken, where the second is marked
    given = [row for row in rows if row["is_right"][row["predicted_index"]]]
    assert given and all(row["correct"] for row in given)
    assert all(row["predicted_index"] < row["answer_index"] for row in given)


@pytest.mark.parametrize(
    ("right", "temperature", "decisions"),
    [(1, 20, "0 of 6"), (0, 0.05, "6 of 6")],
    ids=["all wrong", "all right"],
)
def test_a_temperature_at_its_bound_is_warned_of_and_recorded(
    root, caplog, right, temperature, decisions
):
    """The tiny model gives one answer to every question here: all are right, or all wrong."""
    den, hive = list(HOMES.values())[:2]
    for split in ("calibration", "test"):
        examples = [
            Example(
                f"{split}/{n}", f"Where {n}?", (den, hive)[right], (den, hive), right, "m", split
            )
            for n in range(6)
        ]
        write_examples(root / f"data/prepare/{split}.parquet", examples)
    main(root, "teacher")
    found = read_json(root / "data/evaluate/teacher/metrics.json")
    assert found["temperature"] == temperature and found["temperature_at_bound"] is True
    [said] = [r.message for r in caplog.records if "the bound of its search" in r.message]
    assert said.startswith(
        f"teacher on the calibration split: the fitted temperature of {temperature}"
    )
    assert f"{decisions} decisions are right" in said


def test_what_is_measured_of_scores_needs_no_model(root):
    """So whatever runtime scores the choices, the same functions measure it."""
    settings = load_settings(root / "params.yaml")
    draw = torch.Generator().manual_seed(0)
    asked = [choice("test", n) for n in range(50)]
    scores = torch.randn(50, 4, generator=draw) + torch.eye(4)[[0] * 50]
    scored = Scored.of(asked, scores, by_one_token=False)
    temperature = own_temperature(scored, settings.calibrate).temperature
    decided = scored.at(temperature, [asked])
    sets = measured({"test": decided}, settings.evaluate, seed=0)
    assert set(sets["test"]["calibrated"]) == set(METRICS)
    assert all(
        found["low"] <= found["value"] <= found["high"]
        for found in sets["test"]["calibrated"].values()
    )
    assert sets["test"]["examples"] == 50


def test_scores_of_parts_are_those_of_the_whole(root):
    """Also where no question of a part has as many choices as one of another part."""
    asked = [replace(choice("test", n), choices=choice("test", n).choices[:3]) for n in range(9)]
    asked += [choice("test", n) for n in range(9, 20)]
    scores = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    scores[:9, 3] = -torch.inf
    whole = Scored.of(asked, scores, by_one_token=True)
    parts = [Scored.of(asked[:9], scores[:9, :3], True), Scored.of(asked[9:], scores[9:], False)]
    joined = Scored.concatenate(parts)
    assert not joined.by_one_token
    for name in ("scores", "is_right", "answer_index"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))
    for name, values in vars(whole.predictions(2.0)).items():
        np.testing.assert_array_equal(getattr(joined.predictions(2.0), name), values)


def test_predictions_do_not_depend_on_how_many_questions_are_read_at_a_time(root, monkeypatch):
    """With batches of one, since of a part's questions those of similar length share a batch."""
    params = YAML().load(root / "params.yaml")
    params["evaluate"]["micro_batch_size"] = 1
    YAML().dump(params, root / "params.yaml")
    for split in ("calibration", "test"):
        examples = [choice(split, number) for number in range(6)]
        write_examples(root / f"data/prepare/{split}.parquet", examples)
    folder, found = root / "data/evaluate/teacher", []
    for size in (2**15, 4):
        monkeypatch.setattr("firstkd.data.examples.CHUNK", size)
        monkeypatch.setattr("tasks.scores.CHUNK", size)
        main(root, "teacher")
        written = [(folder / f"{name}.json").read_bytes() for name in ("metrics", "calibration")]
        found.append([pq.read_table(folder / "predictions.parquet"), *written])
    assert found[0] == found[1]
    assert pq.ParquetFile(folder / "predictions.parquet").num_row_groups == 2


@pytest.mark.parametrize(("max_error", "promised"), [(0.3, True), (0.01, False)])
def test_what_a_policy_promises_is_kept_with_the_model(root, max_error, promised):
    """Every choice is right, so the number of questions alone limits the promise: 0.7^30 < 10 %."""
    yaml = YAML()
    params = yaml.load(root / "params.yaml")
    params["serve"]["policy"] = {"max_error": max_error, "confidence": 0.9}
    yaml.dump(params, root / "params.yaml")
    for split in ("calibration", "test"):
        examples = [
            Example(f"{split}/{n}", f"Where {n}?", "in", ("in", "in"), 0, "made", split)
            for n in range(30)
        ]
        write_examples(root / f"data/prepare/{split}.parquet", examples)
    main(root, "teacher")
    kept = read_json(root / "data/evaluate/teacher/calibration.json")["policy"]
    test = read_json(root / "data/evaluate/teacher/metrics.json")["sets"]["test"]["policy"]
    rows = pq.read_table(root / "data/evaluate/teacher/predictions.parquet").to_pandas()
    if not promised:
        assert kept["threshold"] is None and test["coverage"]["value"] == 0
        return
    answered = rows[rows["calibrated_confidence"] >= kept["threshold"]]
    assert kept["questions"] == 30 and 0 < kept["answered"] <= 30
    assert test["coverage"]["value"] == len(answered) / 30
    assert test["error"]["value"] == pytest.approx((~answered["correct"]).mean())
    assert test["error"]["low"] <= test["error"]["value"] <= test["error"]["high"]
