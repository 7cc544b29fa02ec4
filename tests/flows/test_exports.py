"""Exports of the registered student: kept with its version, judged by the gate, and rebuilt."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from flows.conclude import conclude
from flows.project import Project
from flows.promotion import promote
from flows.registry import get_version
from flows.reproduce import reproduce
from flows.workspace import Workspace
from tests.flows.projects import Quiet, dvc, git, open_project

STAGES = """\
  export-browser:
    cmd: python pipeline.py export browser
    deps: [data/model/first]
    outs:
      - data/export/browser
  evaluate-browser:
    cmd: python pipeline.py evaluate browser
    deps: [data/export/browser]
    outs:
      - data/evaluate/browser
  evaluate-teacher:
    cmd: python pipeline.py evaluate teacher
    deps: [data/model/teacher]
    outs:
      - data/evaluate/teacher
"""


@pytest.fixture
def exporting(project: Workspace) -> Project:
    """The project in git, its student exported and the export measured."""
    root, yaml = project.root, YAML()
    params = yaml.load(root / "params.yaml")
    browser = {"kind": "onnx", "of": "first", "weights": "int8", "license": "MIT"}
    params["exports"] = {"browser": browser}
    params["evaluate"]["models"] = ["teacher", "first", "browser"]
    params["promote"]["max_export_drop"] = 0.01
    yaml.dump(params, root / "params.yaml")
    with (root / "dvc.yaml").open("a") as file:
        file.write(STAGES)
    (root / ".gitignore").write_text("/data\n/logs\n/mlflow\n/.dvc/tmp\n/.dvc/cache\ndvc.lock\n")
    (root / "sources").mkdir()
    dvc(root, "repro", "--quiet")
    git(root, "init", "-q", "-b", "main")
    git(root, "add", ".")
    git(root, "commit", "-qm", "all")
    return open_project(root)


def test_an_export_is_kept_with_its_version_and_comes_back_to_the_same_bytes(
    exporting: Project, tmp_path: Path
) -> None:
    concluded = conclude(exporting)
    version, made = concluded.version, exporting.root / "data/export/browser"
    assert concluded.champion == "1"
    assert any(r.startswith("export browser: accuracy +0.000") for r in concluded.verdict.reasons)
    run = exporting.tracking.run_files(version.run_id, "", tmp_path)
    assert (run / "exports/browser/model.onnx").read_bytes() == (made / "model.onnx").read_bytes()
    assert version.tags["export_browser_sha256"] in (made / "firstkd.json").read_text()

    rebuilt = reproduce(exporting, version, rebuild=True, sink=Quiet())
    assert not rebuilt.differences
    assert "same     exports/browser" in rebuilt.compared
    (run / "exports/browser/model.onnx").write_bytes(b"another")
    damaged = reproduce(exporting, version, rebuild=False, sink=Quiet())
    assert [words.split(":")[0] for words in damaged.differences] == ["differs  exports/browser"]


def test_an_export_that_lost_too_much_keeps_its_version_out(exporting: Project) -> None:
    params = exporting.root / "params.yaml"
    pipeline = exporting.root / "pipeline.py"
    worse = 'right = (model != "browser") + min('
    pipeline.write_text(pipeline.read_text().replace("right = min(", worse))
    params.write_text(params.read_text().replace("epochs: 4", "epochs: 3"))
    dvc(exporting.root, "repro", "--quiet")
    project = open_project(exporting.root)
    concluded = conclude(project)
    assert concluded.champion is None
    [lost, *_] = get_version(project, None).tags["decision_reasons"].splitlines()
    assert lost.startswith("export browser: accuracy -0.017 [") and "of 0.01 is allowed" in lost
    verdict = promote(project, get_version(project, None))
    assert verdict.outcome == "rejected" and lost in verdict.reasons
