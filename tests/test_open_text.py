"""The benchmark of open text asks for what there is."""

import gzip
import json
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo

from benchmarks.open_text import COLUMNS, DATA, STUDENTS, table, write_data, write_project
from benchmarks.translations import translations
from firstkd.data.readers import read
from firstkd.data.settings import DatasetSource
from firstkd.measure.metrics import METRICS
from firstkd.open_text.metrics import METRICS as OF_WORDS
from firstkd.settings import load_settings


@pytest.mark.parametrize("name", DATA)
def test_its_projects_are_valid_and_can_be_written_again(tmp_path: Path, name: str) -> None:
    (tmp_path / ".dvc").mkdir()  # as in a project that was begun
    write_project(tmp_path, name, seed=3, examples=64)
    graph = (tmp_path / "dvc.yaml").read_bytes()
    settings = load_settings(tmp_path / "params.yaml")
    assert settings.evaluate.models == ["teacher", *STUDENTS] and settings.runtime.seed == 3
    assert all(f"evaluate-{model}:" in graph.decode() for model in settings.evaluate.models)
    write_project(tmp_path, name, seed=3, examples=64)
    assert (tmp_path / "dvc.yaml").read_bytes() == graph


def test_alpaca_is_read_as_it_is_published(tmp_path: Path) -> None:
    published = tmp_path / "alpaca_data.json.gz"
    row = {"instruction": "Name a fox.", "input": "", "output": "Reynard"}
    published.write_bytes(gzip.compress(json.dumps([row]).encode()))
    write_data(tmp_path / "sources", "alpaca", published)
    dataset = DatasetSource(**DATA["alpaca"], role="split")
    [example] = read(tmp_path / dataset.source.removeprefix("path:"), dataset, "alpaca")
    assert (example.prompt, example.response) == ("Name a fox.", "Reynard")


def test_its_tables_show_metrics_that_are_measured() -> None:
    for _, _, reading, metric in COLUMNS:
        assert metric in (OF_WORDS if reading == "text" else METRICS)
    cell = {"value": 0.5, "low": 0.25, "high": 0.75}
    models = {name: {title: cell for title, *_ in COLUMNS} for name in ("teacher", *STUDENTS)}
    shown = table("xsum", {"top_5_mass": {"train": 0.9}, "models": models})
    assert shown.count("0.500 (0.25 to 0.75)") == len(COLUMNS) * (1 + len(STUDENTS))
    assert "train 0.900" in shown


def test_translations_are_read_from_the_catalogues_of_a_wheel(tmp_path: Path) -> None:
    catalogue, file = Catalog(locale="fr"), BytesIO()
    messages = {"Log in again": "Se reconnecter", "Yes": "Oui", "Django site admin": ""}
    messages |= {"Forms": "Formulaires", "error 404": "error 404"}
    for english, french in messages.items():
        catalogue.add(english, french)
    catalogue.add(("%(n)d more day", "%(n)d more days"), ("%(n)d jour", "%(n)d jours"))
    write_mo(file, catalogue)
    with zipfile.ZipFile(tmp_path / "wheel.whl", "w") as wheel:
        for place in ("a/locale/fr", "b/locale/fr", "a/locale/de"):
            wheel.writestr(f"{place}/LC_MESSAGES/django.mo", file.getvalue())
    assert [*translations(tmp_path / "wheel.whl")] == [("Log in again", "Se reconnecter")] * 2
