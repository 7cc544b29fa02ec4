"""The study: its test questions are nobody's lesson, and its arms differ in one thing."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import arms, project
from firstkd.settings import Settings, load_settings


def write_set(folder: Path, files: arms.Files, questions: int, tested: int) -> None:
    folder.mkdir(parents=True)
    assert files.test is not None
    for name, count in ((files.train, questions), (files.test, tested)):
        lines = (f'{{"id": "{name} {i}"}}\n' for i in range(count))
        (folder / name).write_text("".join(lines))


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(project, "dvc", lambda *_: None)
    write_set(tmp_path / "data/openbookqa", arms.SETS["openbookqa"], questions=2000, tested=50)
    write_set(tmp_path / "data/commonsenseqa", arms.SETS["commonsenseqa"], questions=0, tested=20)
    given = Namespace(
        data=tmp_path / "data",
        dataset="openbookqa",
        transfer="commonsenseqa",
        labels=600,
        unlabelled=400,
        held_out=300,
        teacher_epochs=4,
        arms=["sft_long", "hard", "tempered"],
        threads=1,
    )
    arms.write_project(tmp_path / "seed-3", 3, given)
    return tmp_path / "seed-3"


def ids(project: Path, settings: Settings, name: str) -> set[str]:
    text = (project / settings.fetch.datasets[name].source.removeprefix("path:")).read_text()
    return {json.loads(line)["id"] for line in text.splitlines()}


def test_no_question_has_two_roles(study: Path) -> None:
    settings = load_settings(study / "params.yaml")
    found = {name: ids(study, settings, name) for name in settings.fetch.datasets}
    sizes = {name: len(questions) for name, questions in found.items()}
    assert sizes == {"labelled": 935, "unlabelled": 765, "tested": 350, "commonsenseqa": 20}
    assert len(set.union(*found.values())) == sum(sizes.values())
    roles = {name: dataset.role for name, dataset in settings.fetch.datasets.items()}
    assert roles["tested"] == "test" and roles["commonsenseqa"] == "out_of_domain"


def test_arms_differ_in_what_they_learn_or_for_how_long(study: Path) -> None:
    settings = load_settings(study / "params.yaml")
    assert settings.runtime.seed == 3
    assert settings.train["finetune"].epochs == 4
    assert settings.train["long"].epochs == round(settings.train["distill"].epochs * 1000 / 600)
    assert settings.evaluate.models == [
        "teacher", "sft", "sft_long", "hard", "first", "tempered", "average"
    ]  # fmt: skip
    students: dict[str, dict[str, Any]] = {
        name: settings.models[name].model_dump() for name in settings.evaluate.models[1:-1]
    }
    assert all(student["init"]["of"] == "start" for student in students.values())
    assert {name for name, student in students.items() if student["train"] == "long"} == {
        "sft_long"
    }
    learned = [json.dumps(students[name]["learn"]) for name in students if name != "sft_long"]
    assert len(set(learned)) == len(learned)
    assert students["sft_long"]["learn"] == students["sft"]["learn"]
