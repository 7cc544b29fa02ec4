"""What the pages tell people to type exists, and the settings they show are valid.

tests/test_docs_run.py runs the commands; this takes no time.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from ruamel.yaml import YAML

from firstkd.settings import load_settings
from flows.cli import app
from tests.pages import PAGES, commands_of, fenced
from tests.tiny import REPOSITORY

# what a fresh environment answers at once and without side effects
CHEAP = {"firstkd doctor", "dvc dag"}


def blocks(language: str) -> list[Any]:
    return [
        pytest.param(text, id=f"{page.stem}-{number}")
        for page in PAGES
        for number, (found, text) in enumerate(fenced(page))
        if found == language
    ]


def commands() -> list[str]:
    """Every command of every page, once, without its comment."""
    split = [shlex.split(each, comments=True) for page in PAGES for each in commands_of(page)]
    return sorted({shlex.join(words) for words in split})


def of_program(name: str) -> list[str]:
    """The commands that run a program; its name may also be another's argument."""
    found = []
    for command in commands():
        words = ["&&", *shlex.split(command)]
        before = [words[i - 1] for i, word in enumerate(words) if word == name]
        if any("=" in word or word in {"&&", "|", "-m"} for word in before):
            found.append(command)
    return found


@pytest.mark.parametrize("command", of_program("firstkd"))
def test_commands_and_options_of_firstkd_exist(command: str) -> None:
    words = shlex.split(command)
    words = words[words.index("firstkd") + 1 :]
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group) or hasattr(group, "commands")
    options = {option for parameter in group.params for option in parameter.opts}
    while words and words[0].startswith("-"):
        assert words.pop(0) in options
    if words and words[0].isidentifier():
        chosen = group.commands[words[0]]
        options = {option for parameter in chosen.params for option in parameter.opts} | {"--help"}
        named = {word.partition("=")[0] for word in words[1:] if word.startswith("--")}
        assert named <= options


@pytest.mark.parametrize("command", of_program("make"))
def test_targets_of_make_exist(command: str) -> None:
    words = shlex.split(command)
    target = words[words.index("make") + 1]
    done = subprocess.run(
        ["make", "--dry-run", target], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("python -m ")])
def test_modules_that_are_run_exist(command: str) -> None:
    module = shlex.split(command)[2]
    assert (REPOSITORY / f"{module.replace('.', '/')}.py").exists()


@pytest.mark.parametrize("command", of_program("dvc"))
def test_commands_and_options_of_dvc_exist(command: str) -> None:
    from dvc.cli import parse_args

    words = shlex.split(command)
    words = words[words.index("dvc") + 1 :]
    known = parse_args([word for word in words if word not in {"NAME", "URL", "PLACE"}])
    assert known.cmd in words


@pytest.mark.parametrize("block", blocks("yaml"))
def test_settings_that_are_shown_are_valid(block: str, tmp_path: Path) -> None:
    """Each block holds beside the shipped settings, as somebody would edit them."""
    yaml = YAML()
    params = yaml.load(REPOSITORY / "params.yaml")
    shown = YAML(typ="safe").load(block)
    merge(params, shown)
    yaml.dump(params, tmp_path / "params.yaml")
    settings = load_settings(tmp_path / "params.yaml").model_dump(by_alias=True)
    assert shown.keys() <= settings.keys()


def merge(params: Any, shown: Any) -> None:
    for key, value in shown.items():
        # a source replaces the one that was there, with its sha256
        if isinstance(value, dict) and isinstance(params.get(key), dict) and "source" not in value:
            merge(params[key], value)
        else:
            params[key] = value


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_are_linked_exist(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted(CHEAP & set(commands())))
def test_cheap_commands_work(command: str) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY)}
    environment.pop("PREFECT_API_URL", None)
    done = subprocess.run(
        shlex.split(command), cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
