"""A tiny project whose training runs as real processes, to be killed, stopped and compared."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from firstkd.files import sha256_of
from firstkd.settings import load_settings
from firstkd.train.settings import MachineSettings
from tasks import prepare
from tasks.graph import write_graph
from tests.tiny import REPOSITORY, write_tiny_model, write_tiny_params, write_tiny_questions

OF_A_RANK = {"RANK", "LOCAL_RANK", "WORLD_SIZE"}
"""What a training within the tests' own process leaves in its environment."""
SECONDS_TO_END = 20
"""Within which nothing of a training is left when a part of it was killed."""


@dataclass
class Project:
    root: Path
    models: str = "teacher"
    """Or those that are trained together, as the stage names them."""

    def start(self, **environment: str) -> subprocess.Popen[str]:
        outside = {name: value for name, value in os.environ.items() if name not in OF_A_RANK}
        return subprocess.Popen(
            [sys.executable, "-m", "tasks.model", self.models],
            cwd=self.root,
            env={**outside, "PYTHONPATH": str(REPOSITORY), **environment},
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, **environment: str) -> str:
        """Run the stage to its end; return what it wrote and its hash."""
        process = self.start(**environment)
        _, said = process.communicate()
        assert process.returncode == 0, f"{process.returncode}: {said[-3000:]}"
        assert not list((self.root / "data/.train").glob("*"))
        return result(self)

    def run_stage(self, stage: str, name: str) -> None:
        """Run another stage than the training to its end."""
        command = [sys.executable, "-m", f"tasks.{stage}", name]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        subprocess.run(command, cwd=self.root, env=environment, check=True)

    def change(self, **settings: object) -> None:
        yaml = YAML()
        params = yaml.load(self.root / "params.yaml")
        for key, value in settings.items():
            of_machine = key in MachineSettings.model_fields
            section = params["machine"] if of_machine else params["train"]["finetune"]
            section[key] = value
        yaml.dump(params, self.root / "params.yaml")
        write_graph(self.root, load_settings(self.root / "params.yaml"))

    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in self.root.glob("data/.train/*/step-*"))

    def steps_done(self) -> int:
        curve = self.root / f"logs/model-{self.models}/curve.jsonl"
        return len(curve.read_text().splitlines()) if curve.exists() else 0

    def reach(self, process: subprocess.Popen[str], condition: Callable[[], object]) -> None:
        while not condition():
            assert process.poll() is None, "it ended before it could be disturbed"
            time.sleep(0.001)


def write_inputs(root: Path) -> None:
    """Write what trainings begin with."""
    write_tiny_params(root)
    write_tiny_model(root / "data/model/base")
    for name, seed in (("questions", 1), ("elsewhere", 2)):
        write_tiny_questions(root / f"data/fetch/{name}.jsonl", 80, seed)
    prepare.main(root)


def copy_of(inputs: Path, root: Path) -> Project:
    root.mkdir(exist_ok=True)
    shutil.copytree(inputs / "data", root / "data")
    shutil.copy(inputs / "params.yaml", root)
    project = Project(root)
    project.change(
        epochs=5, micro_batch_size=2, micro_batches_per_step=2, checkpoint_steps=5, processes=1,
        learning_rate=1e-4,
    )  # fmt: skip
    return project


def result(project: Project) -> str:
    names = project.models.split("-")
    return " ".join(sha256_of(project.root / "data/model" / name) for name in names)


def children(pid: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + SECONDS_TO_END
    while not all(map(is_gone, pids)):
        assert time.monotonic() < deadline, "something hangs"
        time.sleep(0.05)
