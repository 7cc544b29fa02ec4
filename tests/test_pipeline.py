"""The whole pipeline on a tiny Llama: real DVC, DeepSpeed, Great Expectations, MLflow, Prefect."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.tiny import write_tiny_project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

EPOCHS_ALLOWED = "allowed: epochs, gradient_clipping, learning_rate, lora, "
FIRSTKD = Path(sys.executable).with_name("firstkd")


@dataclass
class Project:
    root: Path
    environment: dict[str, str]

    def firstkd(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._run(str(FIRSTKD), *arguments)

    def dvc(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._run(sys.executable, "-m", "dvc", *arguments)

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.root, env=self.environment, capture_output=True, text=True
        )

    def change(self, *path: str, to: object) -> None:
        yaml = YAML()
        params = yaml.load(self.root / "params.yaml")
        section = params
        for key in path[:-1]:
            section = section[key]
        section[path[-1]] = to
        yaml.dump(params, self.root / "params.yaml")


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, str]:
    """A project on which `firstkd run` has succeeded, and what it said."""
    root = tmp_path_factory.mktemp("pipeline")
    environment = write_tiny_project(root)
    home = tmp_path_factory.mktemp("prefect")
    project = Project(root, {**environment, "PREFECT_HOME": str(home), "COLUMNS": "120"})
    project.environment.pop("PREFECT_API_URL", None)
    project.environment.pop("MLFLOW_TRACKING_URI", None)
    done = project.firstkd()
    assert done.returncode == 0, done.stderr[-3000:]
    return project, done.stdout


@pytest.fixture
def project(first_run: tuple[Project, str]) -> Iterator[Project]:
    """The project after its first run; params.yaml is put back afterwards."""
    found, _ = first_run
    kept = (found.root / "params.yaml").read_bytes()
    yield found
    (found.root / "params.yaml").write_bytes(kept)


def stale(project: Project) -> set[str]:
    return set(json.loads(project.dvc("status", "--json").stdout))


def test_the_summary_shows_models_verdict_and_where_to_look(first_run):
    _, said = first_run
    for word in ("teacher", "first", "sft", "accuracy", "NLL at T", "AURC", "report", "mlflow ui"):
        assert word in said
    assert "firstkd-student v1 is promoted" in said


def test_the_champion_answers_with_calibrated_confidence(project, monkeypatch):
    import mlflow
    import pandas as pd

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project.root}/mlflow/mlflow.db")
    champion = mlflow.pyfunc.load_model("models:/firstkd-student@champion")
    choices = ["in a den", "in a hive", "in the sea"]
    asked = pd.DataFrame({"question": ["Where does the red bee live?"], "choices": [choices]})
    answered = champion.predict(asked)
    assert answered["answer"][0] in choices
    assert 1 / 3 <= answered["confidence"][0] <= 1


def test_a_second_run_does_nothing_and_says_so(project):
    lock = (project.root / "dvc.lock").read_bytes()
    done = project.firstkd("run")
    assert done.returncode == 0
    assert "Nothing has changed; champion: firstkd-student v1" in done.stdout
    assert (project.root / "dvc.lock").read_bytes() == lock


@pytest.mark.parametrize(
    ("setting", "value", "directly_stale"),
    [
        (
            ("models", "start", "init", "intermediate_size"),
            32,
            {"model-start", "report", "validate"},
        ),
        (("prepare", "max_examples", "train"), 20, {"prepare"}),
        (
            ("models", "first", "learn", "tokens", "weight"),
            0.25,
            {"model-first", "report", "validate"},
        ),
        (("train", "finetune", "epochs"), 2, {"model-teacher", "validate"}),
        (("machine", "checkpoint_steps"), 7, set()),
    ],
)
def test_a_changed_number_makes_stale_only_what_reads_it(project, setting, value, directly_stale):
    project.change(*setting, to=value)
    assert stale(project) == directly_stale


def test_another_temperature_leaves_the_gold_student_alone_and_all_comes_back(project):
    """What a setting does not reach is not repeated; all again, forced, gives the same bytes."""
    lock = (project.root / "dvc.lock").read_bytes()
    project.change("calibrate", "criterion", to="ece")
    done = project.dvc("repro")
    assert done.returncode == 0, done.stderr[-3000:]
    ran = {line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("Running")}
    assert {"calibrate-choices", "model-first", "evaluate-first", "report"} <= ran
    assert not ran & {"fetch", "prepare", "model-teacher", "model-start", "model-sft"}
    assert not any(name.startswith("signal-") for name in ran)

    project.change("calibrate", "criterion", to="nll")
    shutil.rmtree(project.root / "data/model/start")
    shutil.rmtree(project.root / "data/signal")
    done = project.dvc("repro", "--force", "--no-run-cache")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (project.root / "dvc.lock").read_bytes() == lock


@pytest.mark.parametrize(
    ("setting", "value", "error"),
    [
        (
            ("train", "finetune", "epochz"),
            3,
            "train.finetune: unknown key 'epochz' (value 3); " + EPOCHS_ALLOWED,
        ),
        (("runtime", "threads"), 0, "runtime.threads: 0 is not allowed"),
        (("record", "tracking_uri"), "http://127.0.0.1:9", "MLflow at http://127.0.0.1:9 does not"),
        (("models", "base", "init", "source"), "path:sources/questions.jsonl", "no weights"),
        (("models", "base", "init", "sha256"), "0" * 64, "expected " + "0" * 64),
    ],
)
def test_a_mistake_is_one_clear_error_and_leaves_nothing(project, setting, value, error):
    project.change(*setting, to=value)
    before = sorted(path.name for path in (project.root / "data").iterdir())
    done = project.firstkd("run")
    assert done.returncode == 1
    assert error in done.stderr
    assert "Traceback" not in done.stderr
    after = {path.name for path in (project.root / "data").iterdir()}
    assert not any(name.endswith(".tmp") for name in after)
    assert after <= set(before)


def test_knowledge_goes_out_and_comes_back(project, tmp_path):
    copy = Project(shutil.copytree(project.root, tmp_path / "copy"), project.environment)
    done = copy.firstkd("export-knowledge", "tokens", "train", str(tmp_path / "lines.jsonl"))
    assert done.returncode == 0, done.stderr
    before = (copy.root / "data/signal/tokens/train/00000.safetensors").read_bytes()
    done = copy.firstkd("import-knowledge", "tokens", "train", str(tmp_path / "lines.jsonl"))
    assert done.returncode == 0, done.stderr
    assert "incomplete: gold_logprob" in done.stdout
    copy.firstkd("export-knowledge", "tokens", "train", str(tmp_path / "again.jsonl"))
    sent, came = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("lines.jsonl", "again.jsonl")
    )
    assert came == sent
    assert (copy.root / "data/signal/tokens/train/00000.safetensors").read_bytes() != before
    done = copy.firstkd("import-knowledge", "tokens", "calibration", str(tmp_path / "lines.jsonl"))
    assert done.returncode == 1
    assert "lines for" in done.stderr
