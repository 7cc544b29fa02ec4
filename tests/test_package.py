"""The wheel is built from a copy of the sources, installed elsewhere, and works there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import REPOSITORY

SOURCES = ("firstkd", "tasks", "flows", "pyproject.toml", "README.md", "LICENSE")


def run(command: list[str], **options: object) -> str:
    done = subprocess.run(command, capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


@pytest.mark.slow
def test_the_wheel_builds_and_works_outside_the_clone(tmp_path: Path) -> None:
    clone, elsewhere = tmp_path / "clone", tmp_path / "elsewhere"
    elsewhere.mkdir()
    clone.mkdir()
    for name in SOURCES:
        if (REPOSITORY / name).is_dir():
            made = shutil.ignore_patterns("__pycache__")
            shutil.copytree(REPOSITORY / name, clone / name, ignore=made)
        else:
            shutil.copy(REPOSITORY / name, clone)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index"]
    run([*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", str(tmp_path), str(clone)])
    [wheel] = tmp_path.glob("firstkd-*.whl")
    installed = tmp_path / "installed"
    run([*pip, "install", *offline, "--target", str(installed), str(wheel)])
    shutil.rmtree(clone)
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    where = "import firstkd, flows, tasks; print(firstkd.__file__, flows.__file__, tasks.__file__)"
    found = run([sys.executable, "-c", where], cwd=elsewhere, env=environment).split()
    assert all(Path(file).is_relative_to(installed) for file in found)
    for package in ("flows", "tasks"):  # pages are made from them
        assert [*(installed / package / "templates").iterdir()]
    script = [sys.executable, str(installed / "bin/firstkd"), "--help"]
    assert "doctor" in run(script, cwd=elsewhere, env=environment)
