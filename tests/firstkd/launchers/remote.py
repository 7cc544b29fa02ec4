"""What every launcher of several hosts has to do, shown on two hosts with `stage`."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.tiny import REPOSITORY

LAUNCH = """
import json, sys
from pydantic import TypeAdapter
from firstkd.launchers.kinds import AnyLauncher
from tasks.stage import run_program
from tests.firstkd.launchers.stage import job
launcher = TypeAdapter(AnyLauncher).validate_json(sys.argv.pop(1))
def main(root, folder, what):
    launcher.launch(job(folder, what))
run_program(main, "stage", ["folder", "what"])
"""


def start(launcher: str, folder: Path, what: str, **environment: str) -> subprocess.Popen[str]:
    """Launch a stage; `launcher` is JSON."""
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCH, launcher, folder, what],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def check_two_hosts(launcher: str, folder: Path, **environment: str) -> None:
    """Check that two hosts meet, that one's failure is shown, and that SIGTERM reaches both."""
    process = start(launcher, folder, "meet", **environment)
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert [(folder / f"meet-{rank}").read_text() for rank in (0, 1)] == ["[0, 1]", "[0, 1]"]
    assert not (folder / "logs/hosts").exists()

    process = start(launcher, folder, "fail", **environment)
    _, said = process.communicate()
    assert process.returncode == 2 and "Traceback" not in said
    assert said.splitlines()[-1] == "stage: the second one says why"

    process = start(launcher, folder, "wait", **environment)
    while not all((folder / f"wait-{rank}").exists() for rank in (0, 1)):
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(1)  # both are asleep
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, said
    assert all((folder / f"stopped-{rank}").exists() for rank in (0, 1))
