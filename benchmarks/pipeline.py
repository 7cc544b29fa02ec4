"""What Prefect, DVC and MLflow cost: a whole run against the stage commands in it, and no-ops.

Prints one JSON line. Run as  python -m benchmarks.pipeline [--tiny]
Copies the current project (or, with --tiny, that of the tests). The stages are timed within the
run, since their times vary from run to run by more than all the overhead that is measured. Then
every stage runs again without the pipeline: `same_bytes` says whether it made the same bytes.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from firstkd.files import sha256_of
from firstkd.settings import load_settings
from flows.project import opened
from flows.registry import get_version, load_evidence
from tasks.gate import decide
from tasks.graph import stages_of

MADE = {"data", "logs", "mlflow", ".venv", ".git", "dvc.lock"}
FIRSTKD = [sys.executable, "-c", "from flows.cli import main; main()"]
REPEATS = 3
STOPWATCH = """#!{python} -IS
import subprocess, sys, time
started = time.monotonic()
code = subprocess.call(["/bin/sh", *sys.argv[1:]])
with open(__file__ + ".seconds", "a") as file:
    print(time.monotonic() - started, file=file)
sys.exit(code)
"""


def main(tiny: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole, bare = folder / "whole", folder / "bare"
        if tiny:
            from tests.tiny import write_tiny_project

            whole.mkdir()
            write_tiny_project(whole)
        else:
            shutil.copytree(Path(), whole, ignore=_made)
            no_scm = [sys.executable, "-m", "dvc", "config", "--local", "core.no_scm", "true"]
            subprocess.run(no_scm, cwd=whole, check=True)
        stopwatch = folder / "stopwatch"
        stopwatch.write_text(STOPWATCH.replace("{python}", sys.executable))
        stopwatch.chmod(0o755)
        shutil.copytree(whole, bare)
        environment = _environment(folder)
        # DVC runs every stage through the user's shell
        run_seconds = _timed(FIRSTKD, whole, {**environment, "SHELL": str(stopwatch)})
        seconds = Path(f"{stopwatch}.seconds").read_text().split()
        stage_seconds = sum(float(number) for number in seconds)
        for command in _stage_commands(whole):
            _timed(command.split(), bare, environment)
        noop_repro = min(
            _timed([sys.executable, "-m", "dvc", "repro"], whole, environment)
            for _ in range(REPEATS)
        )
        noop_retrain = min(_timed(FIRSTKD, whole, environment) for _ in range(REPEATS))
        promote = _promotion_seconds(whole)
        stages = [path.name for path in (bare / "data").glob("[!.]*") if path.is_dir()]
        same = all(
            sha256_of(whole / "data" / stage) == sha256_of(bare / "data" / stage)
            for stage in stages
        )
    result = {
        "benchmark": "pipeline",
        "project": "tiny" if tiny else "default",
        "run_seconds": round(run_seconds, 1),
        "stage_seconds": round(stage_seconds, 1),
        "overhead_seconds": round(run_seconds - stage_seconds, 1),
        "overhead_share": round(run_seconds / stage_seconds - 1, 3),
        "noop_repro_seconds": round(noop_repro, 2),
        "noop_retrain_seconds": round(noop_retrain, 2),
        "promote_seconds": round(promote, 2),
        "same_bytes": same,
    }
    print(json.dumps(result))


def _made(folder: str, names: list[str]) -> set[str]:
    """Return what a copy of the project leaves out: what the pipeline or the set-up made."""
    if Path(folder) == Path():
        return MADE & set(names)
    return {"cache", "tmp"} & set(names) if Path(folder) == Path(".dvc") else set()


def _environment(folder: Path) -> dict[str, str]:
    """Return the environment for all commands: this code and Python, and no lasting server."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "DVC_SITE_CACHE_DIR": str(folder / "site"),
        "PREFECT_HOME": str(folder / "prefect"),
        "DVC_NO_ANALYTICS": "1",
        "DO_NOT_TRACK": "true",
    }
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        environment.pop(name, None)
    return environment


def _timed(command: list[str], cwd: Path, environment: dict[str, str]) -> float:
    """Return the seconds of a command; raises CalledProcessError if it fails."""
    started = time.perf_counter()
    subprocess.run(command, cwd=cwd, env=environment, check=True, stdout=sys.stderr)
    return time.perf_counter() - started


def _stage_commands(root: Path) -> list[str]:
    """Return the stages' commands in the order in which they run."""
    return [stage.command for stage in stages_of(load_settings(root / "params.yaml"))]


def _promotion_seconds(root: Path) -> float:
    """Return the seconds that a decision takes, loading the evidence of two versions included."""
    with opened(root) as project:
        version = get_version(project, "1")
        started = time.perf_counter()
        challenger, champion = (load_evidence(project.tracking, version) for _ in range(2))
        decide(challenger, champion, project.settings.promote)
    return time.perf_counter() - started


if __name__ == "__main__":
    main("--tiny" in sys.argv[1:])
