"""Makes the small DVC project that the tests of flows/ work on."""

import shutil
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

from firstkd.processes import OutputSink
from flows.project import Project, load_workspace
from flows.tracking import open_tracking

REPOSITORY = Path(__file__).parents[2]

DVC_YAML = """\
stages:
  prepare:
    cmd: python pipeline.py prepare
    outs:
      - data/prepare
  model-teacher:
    cmd: python pipeline.py model teacher
    params: [train.finetune]
    deps: [data/prepare/train.parquet]
    outs:
      - data/model/teacher
  model-first:
    cmd: python pipeline.py model first
    params: [train.distill]
    deps: [data/model/teacher]
    outs:
      - data/model/first
  evaluate-first:
    cmd: python pipeline.py evaluate first
    deps: [data/model/first, data/prepare/test.parquet]
    outs:
      - data/evaluate/first
  report:
    cmd: python pipeline.py report
    deps: [data/evaluate/first]
    outs:
      - data/report
"""


def dvc(root: Path, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=root, check=True)


def git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    command = ["git", *identity, *arguments]
    return subprocess.run(
        command, cwd=root, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()


def change(root: Path, section: str, key: str, value: object) -> None:
    """Set one number in params.yaml; `section` may be of several keys, with dots between."""
    yaml = YAML()
    params = found = yaml.load(root / "params.yaml")
    for part in section.split("."):
        found = found[part]
    found[key] = value
    yaml.dump(params, root / "params.yaml")


def make_project(root: Path) -> None:
    """Write the project and run its stages."""
    shutil.copy(Path(__file__).with_name("pipeline.py"), root)
    shutil.copy(REPOSITORY / "params.yaml", root)
    yaml = YAML()
    params = yaml.load(root / "params.yaml")
    params["evaluate"]["models"], params["record"]["student"] = ["first"], "first"
    params["train"]["distill"]["epochs"] = 4
    params["promote"]["require_reproducible"] = False  # the project is outside git
    yaml.dump(params, root / "params.yaml")
    (root / "dvc.yaml").write_text(DVC_YAML)
    dvc(root, "init", "--no-scm", "--quiet")
    dvc(root, "repro", "--quiet")


class Quiet(OutputSink):
    def line(self, text: str) -> None:
        pass

    def progress(self, text: str) -> None:
        pass


def open_project(root: Path) -> Project:
    workspace, settings = load_workspace(root)
    return Project(workspace, settings, open_tracking(root, settings.record))


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
