"""Makes the small DVC project that the tests of flows/ work on."""

import shutil
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

from flows.processes import OutputSink
from flows.project import Project, load_workspace
from flows.tracking import open_tracking

REPOSITORY = Path(__file__).parents[2]

DVC_YAML = """\
stages:
  prepare:
    cmd: python pipeline.py prepare
    outs:
      - data/prepare
  finetune:
    cmd: python pipeline.py finetune
    params: [finetune]
    deps: [data/prepare/train.parquet]
    outs:
      - data/finetune
  distill:
    matrix:
      arm: [first]
    cmd: python pipeline.py distill ${item.arm}
    params: [distill]
    deps: [data/finetune]
    outs:
      - data/distill/${item.arm}
  evaluate:
    matrix:
      model: [first]
    cmd: python pipeline.py evaluate ${item.model}
    deps: [data/distill/first, data/prepare/test.parquet]
    outs:
      - data/evaluate/${item.model}
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
    """Set one number in params.yaml."""
    yaml = YAML()
    params = yaml.load(root / "params.yaml")
    params[section][key] = value
    yaml.dump(params, root / "params.yaml")


def make_project(root: Path) -> None:
    """Write the project and run its stages."""
    shutil.copy(Path(__file__).with_name("pipeline.py"), root)
    shutil.copy(REPOSITORY / "params.yaml", root)
    yaml = YAML()
    params = yaml.load(root / "params.yaml")
    params["arms"] = {"first": {"recalibration": "temperature", "choices": 1.0}}
    params["evaluate"]["models"] = {"first": "distill/first"}
    params["distill"]["epochs"] = 4
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
