"""A student of open text, registered and asked: on the command line, and as MLflow loads it."""

import shutil
from dataclasses import replace
from pathlib import Path

import mlflow
import pandas as pd
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from firstkd.data.examples import read_examples, write_examples
from firstkd.errors import DataValidationError
from flows import operations_cli, registry
from flows.project import Project
from flows.promotion import CHAMPION
from tasks.evaluate import main as evaluate
from tests.flows.projects import open_project
from tests.tiny import open_questions, write_tiny_params


@pytest.fixture(scope="module")
def champion(
    tmp_path_factory: pytest.TempPathFactory, talker: Path, mlflow_template: Path
) -> Project:
    """A model taught to answer in its own words, measured under a policy, in the registry."""
    root, yaml = tmp_path_factory.mktemp("asked"), YAML()
    write_tiny_params(root)
    params = yaml.load(root / "params.yaml")
    params["serve"]["policy"] = {"max_error": 0.4, "confidence": 0.9}
    params["evaluate"]["open_text"].update(max_new_tokens=12, right_from=0.9)
    params["record"]["student"] = "first"
    yaml.dump(params, root / "params.yaml")
    shutil.copytree(talker, root / "data/model/first")
    (root / "data/prepare").mkdir()
    examples = open_questions(96, seed=1)
    for split, part in (("calibration", examples[:48]), ("test", examples[48:])):
        kept = [replace(example, split=split) for example in part]
        write_examples(root / f"data/prepare/{split}.parquet", kept)
    evaluate(root, "first")
    (root / "mlflow").mkdir()
    shutil.copy(mlflow_template, root / "mlflow/mlflow.db")
    project = open_project(root)
    register(project)
    return project


def register(project: Project) -> None:
    client, student, name = project.client, project.student, project.model
    run_id = client.create_run(project.tracking.experiment_id).info.run_id
    weights, evaluation = project.root / student.weights, project.root / student.evaluation
    with project.tracking.as_default():
        model = registry.log_model(project, run_id, weights, evaluation)
        client.create_registered_model(name)
        client.create_model_version(
            name, model.model_uri, run_id, {"student": student.name}, model_id=model.model_id
        )
    client.set_registered_model_alias(name, CHAMPION, "1")


def predictions(project: Project) -> pd.DataFrame:
    """Return what evaluate measured of the test questions, with what they ask."""
    root = project.root
    rows = pq.read_table(root / project.student.evaluation / "predictions.parquet").to_pandas()
    asked = {e.id: e.prompt for e in read_examples(root / "data/prepare/test.parquet")}
    return rows.assign(question=rows["id"].map(asked)).sort_values("calibrated_confidence")


def test_it_answers_with_its_calibrated_confidence_and_what_is_promised(
    champion: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(champion.root)
    rows = predictions(champion)
    least, surest = rows.iloc[0], rows.iloc[-1]
    operations_cli.ask(surest["question"])
    answered, promise = capsys.readouterr().out.splitlines()
    sure = f"{surest['calibrated_confidence']:.2f}"
    assert answered == f"{surest['given']}  (confidence {sure}, {champion.model} v1)"
    assert promise.startswith(f"{champion.model} v1: answers with a confidence of 0.")
    operations_cli.ask(least["question"])
    abstained = capsys.readouterr().out.splitlines()[0]
    assert abstained.startswith(f"abstain  (best guess: {least['given']}, confidence 0.")
    with pytest.raises(DataValidationError, match="calibrated on open text alone"):
        operations_cli.ask(surest["question"], ["in a den", "in a hive"])


def test_mlflow_loads_it_with_the_same_answers(champion: Project) -> None:
    rows = predictions(champion).head(6)
    with champion.tracking.as_default():
        student = mlflow.pyfunc.load_model(f"models:/{champion.model}@{CHAMPION}")
    found = student.predict(pd.DataFrame({"question": rows["question"].tolist()}))
    assert found["answer"].tolist() == rows["given"].tolist()
    expected = rows["calibrated_confidence"].tolist()
    assert found["confidence"].tolist() == pytest.approx(expected, rel=1e-4)
