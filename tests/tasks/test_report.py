import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML

from firstkd.errors import ArtifactError
from firstkd.files import write_json
from tasks.cascade import cascade_words
from tasks.report import main
from tests.tasks.reported import SETS, write_evaluation, write_project
from tests.tiny import REPOSITORY

THREE = ["teacher", "sft", "first"]


def report(root: Path) -> str:
    main(root)
    return (root / "data/report/index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("three")
    write_project(root, THREE, "first")
    return root


def test_page_says_in_words_how_the_student_compares(three: Path) -> None:
    page = report(three)
    verdict = page[page.index('class="verdict"') : page.index("<ul>")]
    assert "Against the student fine-tuned on gold labels (“sft”), “first” is" in verdict
    assert "Against the teacher, “first” is" in verdict
    assert re.search(r"It answers \d\d\.\d% \(\d\d\.\d to \d\d\.\d\) of 120 test questions", page)
    assert "Out of domain, on elsewhere, it answers" in page


def test_page_needs_nothing_else_and_is_the_same_bytes_again(three: Path) -> None:
    page = report(three)
    assert report(three) == page
    assert not re.search(r'(src|href)="(?!#|data:)', page)
    assert "default-src 'none'" in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)


def test_text_from_data_is_escaped(three: Path) -> None:
    page = report(three)
    assert "in the &lt;sea&gt; &amp; sky" in page
    assert "<sea>" not in page


def test_folders_of_removed_models_are_left_out(three: Path, tmp_path: Path) -> None:
    page = report(three)
    root = tmp_path / "project"
    shutil.copytree(three, root)
    shutil.copytree(root / "data/evaluate/sft", root / "data/evaluate/removed")
    assert report(root) == page


@pytest.mark.parametrize("count", [1, 5, 12])
def test_page_of_few_and_many_models(count: int, tmp_path: Path) -> None:
    models = [f"model_with_a_name_{i}" for i in range(count)]
    write_project(tmp_path, models, "model_with_a_name_0")
    page = report(tmp_path)
    assert page.count("<figcaption><strong>model_with_a_name_") == 2 * count  # with the training
    assert ("stands alone" in page) == (count == 1)
    assert ("neither a teacher nor a student fine-tuned on gold labels" in page) == (count > 1)
    assert (" best student</span>" in page) == (count > 1)


def test_a_model_that_was_not_trained_has_no_curve(tmp_path: Path) -> None:
    write_project(tmp_path, ["base", "first"], "first")
    page = report(tmp_path)
    assert "Training loss of first" in page and "Training loss of base" not in page


def test_evaluations_of_other_questions_are_refused(three: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(three, root)
    shutil.rmtree(root / "data/evaluate/sft")
    fewer = {name: np.zeros(count - 1, dtype=int) for name, count in SETS.items()}
    write_evaluation(root, "sft", fewer, seed=1, skill=1.0)
    with pytest.raises(ArtifactError, match="data/evaluate/sft covers other questions"):
        main(root)


def test_numbers_for_dvc(three: Path) -> None:
    main(three)
    metrics = json.loads((three / "data/report/metrics.json").read_text())
    assert set(metrics) == set(THREE)
    plots = three / "data/report/plots"
    lines = (plots / "reliability/first-raw.csv").read_text().splitlines()
    assert lines[0] == "confidence,accuracy,questions"
    assert sum(int(line.rpartition(",")[2]) for line in lines[1:]) == SETS["test"]
    assert {path.stem for path in (plots / "training").iterdir()} == set(THREE)
    share, accuracy = (plots / "coverage/first.csv").read_text().splitlines()[-1].split(",")
    assert share == "1" and float(accuracy) == pytest.approx(metrics["first"]["accuracy"], abs=1e-5)


def test_the_page_says_what_a_cascade_keeps_and_costs(three: Path, tmp_path: Path) -> None:
    assert "No teacher of" not in report(three)
    root = tmp_path / "project"
    shutil.copytree(three, root)
    yaml = YAML()
    params = yaml.load(root / "params.yaml")
    params["serve"]["cost"] = {"student": 0.5, "teacher": 2}
    yaml.dump(params, root / "params.yaml")
    kept = {"max_error": 0.2, "confidence": 0.95, "threshold": 0.6, "questions": 80}
    kept |= {"answered": 32, "wrong": 2, "error_bound": 0.18}
    evaluation = root / "data/evaluate/first"
    write_json(evaluation / "calibration.json", {"policy": kept})
    measured = json.loads((evaluation / "metrics.json").read_text())
    share = {"value": 0.375, "low": 0.29, "high": 0.47}
    error = {"value": 0.1, "low": 0.03, "high": 0.2}
    measured["sets"]["test"]["policy"] = {"coverage": share, "error": error}
    write_json(evaluation / "metrics.json", measured)
    page = report(root)
    assert "40% of the questions are expected to get one. It answers" in page
    assert "38% (29 to 47) of the test questions; 10% (3 to 20) of those answers are wrong" in page
    found = json.loads((root / "data/report/cascade.json").read_text())["pair"]
    assert [row["kept"] for row in found["rows"]] == [1, 0.75, 0.5, 0.375, 0.25, 0]
    assert [row["cost"] for row in found["rows"]] == [0.5, 1.0, 1.5, 1.75, 2.0, 2.5]
    rows = pd.read_parquet(root / "data/evaluate/teacher/predictions.parquet")
    alone = rows[rows["set"] == "test"]["correct"].mean()
    assert found["rows"][-1]["accuracy"]["value"] == pytest.approx(alone)
    assert found["words"] in page and "against 2 for the teacher alone" in found["words"]
    assert cascade_words(root) == [
        found["words"],
        page[page.index("“first”: ") :].split(" The pr")[0],
    ]


def test_without_a_teacher_there_is_nobody_to_pass_on_to(tmp_path: Path) -> None:
    write_project(tmp_path, ["sft", "first"], "first")
    assert "No teacher of “first” was evaluated" in report(tmp_path)
    assert cascade_words(tmp_path) == []


def contrast(first: str, second: str) -> float:
    """Of two colours like #1b1b1f, as WCAG 2 defines it: from 1 to 21."""

    def luminance(color: str) -> float:
        shares = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
        return sum(w * s for w, s in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_and_lines_stand_out_from_what_is_behind_them(theme: int) -> None:
    css = (REPOSITORY / "tasks/templates/report.css").read_text()
    block = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[theme]
    colors = dict(re.findall(r"--([\w-]+): (#\w{6})", block))
    for text in ("ink", "quiet", "link", "good", "bad"):
        for behind in ("paper", "panel"):
            assert contrast(colors[text], colors[behind]) >= 4.5, (text, behind)
    for name in colors:
        if name.startswith("series-"):
            assert contrast(colors[name], colors["paper"]) >= 3, name
