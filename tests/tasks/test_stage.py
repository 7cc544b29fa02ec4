import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from firstkd.settings import load_settings
from tasks.graph import write_graph
from tests.tiny import REPOSITORY, write_tiny_params

STAGE = """
import time
from pathlib import Path
from firstkd.errors import ConfigError
from firstkd.files import atomic_folder
from tasks.stage import log_folder, run_stage

def main(root, how):
    with atomic_folder(root / "data/demo") as folder:
        (folder / "half").touch()
        if how == "fail":
            raise ConfigError("params.yaml: demo.size: -1 is not allowed")
        if how == "wait":
            print("waiting", flush=True)
            time.sleep(60)
        if how == "train":
            curve = log_folder(root, "demo-train") / "curve.jsonl"
            curve.parent.mkdir(parents=True)
            curve.write_text('{"step_tokens": 100, "tokens_per_second": 50}\\n' * 2)

run_stage(main, "demo", "how")
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    (tmp_path / "stage.py").write_text(textwrap.dedent(STAGE))
    write_tiny_params(tmp_path)
    write_graph(tmp_path, load_settings(tmp_path / "params.yaml"))
    return [sys.executable, "stage.py"]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}


def run(command: list[str], tmp_path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)


def test_a_mistake_is_one_line_and_exit_code_2(command: list[str], tmp_path: Path) -> None:
    done = run([*command, "fail"], tmp_path)
    assert done.returncode == 2
    assert done.stderr == "\ndemo: params.yaml: demo.size: -1 is not allowed\n"
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize("name", ["data", "data/demo", "logs", "logs/demo-done"])
def test_a_file_in_the_place_of_a_folder_is_no_traceback(
    command: list[str], tmp_path: Path, name: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
    done = run([*command, "done"], tmp_path)
    if name == "data/demo":  # an output, of which DVC would say the same
        assert done.returncode == 0 and (tmp_path / name).is_dir()
    else:
        assert done.returncode == 2
        assert name in done.stderr and "move it and run again" in done.stderr
        assert len(done.stderr.splitlines()) == 2


def test_the_cost_is_logged_outside_the_tracked_data(command: list[str], tmp_path: Path) -> None:
    assert run([*command, "train"], tmp_path).returncode == 0
    cost = json.loads((tmp_path / "logs/demo-train/cost.json").read_text())
    assert cost["seconds"] > 0 and cost["peak_memory_bytes"] > 1e6
    assert cost["tokens"] == 200 and cost["tokens_per_second"] == 50


def test_sigterm_leaves_nothing_half_written(command: list[str], tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*command, "wait"], cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == b"waiting\n"
    process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    assert process.wait(timeout=20) == 128 + signal.SIGTERM
    assert time.monotonic() - started < 10
    assert list((tmp_path / "data").iterdir()) == []
