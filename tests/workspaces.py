"""A clone of the project as a worker retrains it, but with the tiny model and 80 questions."""

import os
import shutil
import subprocess
from pathlib import Path

from ruamel.yaml import YAML

from firstkd.settings import load_settings
from tasks.graph import write_graph
from tests.tiny import REPOSITORY, write_tiny_model, write_tiny_params, write_tiny_questions

USER = 1000
"""Of the image, and so of the clone."""
IDENTITY = ["-c", "user.name=n", "-c", "user.email=e@example.org"]


def write_workspace(root: Path, remote: str) -> None:
    """Write the working tree as it is, with its own git history; it belongs to the image's user.

    What DVC tracks goes to `remote`.
    """
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(listed, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    for name in filter(None, done.stdout.split("\0")):
        if (REPOSITORY / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, root / name)
    write_tiny_model(root / "sources/model")
    write_tiny_questions(root / "sources/questions.jsonl", 80, seed=1)
    write_tiny_questions(root / "sources/elsewhere.jsonl", 20, seed=2)
    write_tiny_params(root)
    _shorten(root / "params.yaml")
    write_graph(root, load_settings(root / "params.yaml"))
    quiet = "[core]\n    remote = storage\n    analytics = false\n    check_update = false\n"
    (root / ".dvc/config").write_text(f"{quiet}['remote \"storage\"']\n    url = {remote}\n")
    for command in (["init", "--quiet"], ["add", "."], [*IDENTITY, "commit", "--quiet", "-m", "x"]):
        subprocess.run(["git", *command], cwd=root, check=True)
    for folder, _, names in os.walk(root):
        for path in (Path(folder), *(Path(folder, name) for name in names)):
            os.chown(path, USER, USER, follow_symlinks=False)


def _shorten(params: Path) -> None:
    """Leave one way from the teacher to the student, and push the result."""
    yaml = YAML()
    settings = yaml.load(params)
    settings["publish"]["push"] = True
    settings["evaluate"]["models"], settings["record"]["student"] = ["first"], "first"
    del settings["signals"]["tokens"], settings["models"]["sft"], settings["models"]["average"]
    del settings["models"]["first"]["learn"]["tokens"]
    yaml.dump(settings, params)
