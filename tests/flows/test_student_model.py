"""The student as MLflow loads it: what its signature lets through reaches the answerer."""

import json
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.scoring_server import invocations

from firstkd.files import write_json
from flows import student_model
from flows.registry import SIGNATURE

SHARED = ["no", "yes"]
NAMED = ["in a den", "in a hive", "in the sea"]
QUESTION = "Where does the red fox live?"


def load(folder: Path, tiny_model: Path, choices: list[str] | None) -> mlflow.pyfunc.PyFuncModel:
    prompt = {"format": "cloze", "max_length": 64}
    calibration = {"temperature": 2.0, "prompt": prompt, "choices": choices}
    write_json(folder / "calibration.json", calibration)
    mlflow.pyfunc.save_model(
        folder / "model",
        python_model=student_model.__file__,
        artifacts={"student": str(tiny_model), "calibration": str(folder / "calibration.json")},
        signature=SIGNATURE,
        pip_requirements=[],  # else MLflow loads the model in another process to find them
        model_config={"abstain_below": None},
    )
    return mlflow.pyfunc.load_model(str(folder / "model"))


def test_choices_may_be_left_out_where_all_questions_shared_them(tmp_path, tiny_model):
    student = load(tmp_path, tiny_model, SHARED)
    alone = student.predict(pd.DataFrame({"question": [QUESTION]}))
    named = student.predict(pd.DataFrame({"question": [QUESTION], "choices": [SHARED]}))
    assert alone["answer"][0] in SHARED
    pd.testing.assert_frame_equal(alone, named)

    for absent in (None, float("nan"), pd.NA):
        asked = pd.DataFrame({"question": [QUESTION] * 2, "choices": [NAMED, absent]})
        assert student.predict(asked)["answer"][1] == alone["answer"][0]
    mixed = pd.DataFrame({"question": [QUESTION, QUESTION], "choices": [np.array(NAMED), None]})
    answered = student.predict(mixed)
    assert answered["answer"][0] in NAMED and answered["answer"][1] == alone["answer"][0]


def test_where_they_differ_a_question_has_to_name_them(tmp_path, tiny_model):
    student = load(tmp_path, tiny_model, None)
    with pytest.raises(MlflowException, match=r"question 1 .* has no choices"):
        student.predict(pd.DataFrame({"question": [QUESTION]}))


BAD_ROWS = [
    ({"question": QUESTION, "choices": [None, "in a den"]}, "choice 1 must be text"),
    ({"question": QUESTION, "choices": "in a den"}, "choices must be a list of texts"),
    ({"question": QUESTION, "choices": ["in a den", ""]}, "choice 2 is empty"),
    ({"question": None, "choices": NAMED}, "the question must be text"),
]


@pytest.mark.parametrize(("row", "problem"), BAD_ROWS)
def test_a_row_that_cannot_be_answered_is_named(tmp_path, tiny_model, row, problem):
    student = load(tmp_path, tiny_model, SHARED)
    good = {"question": QUESTION, "choices": NAMED}
    with pytest.raises(MlflowException, match=f"question 2.*{problem}"):
        student.predict(pd.DataFrame([good, row]))


def test_the_same_over_http(tmp_path, tiny_model):
    """What `mlflow models serve` does with the body of a request."""
    student = load(tmp_path, tiny_model, SHARED)

    def serve(rows):
        body = json.dumps({"dataframe_records": rows})
        return invocations(body, "application/json", student, student.metadata.get_input_schema())

    good = {"question": QUESTION, "choices": NAMED}
    for row, choices in ((good, NAMED), ({"question": QUESTION}, SHARED)):
        [answered] = json.loads(serve([row]).response)["predictions"]
        assert answered["answer"] in choices
    for row, problem in BAD_ROWS:
        with pytest.raises(MlflowException, match=f"question 2.*{problem}") as caught:
            serve([good, row])
        assert caught.value.get_http_status_code() == 400
