import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from flows.processes import LineSplitter, run_group
from flows.workspace import Outcome, StageError, Workspace, WorkspaceBusyError
from tests.flows.projects import change


class Collected:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.states: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    def progress(self, text: str) -> None:
        self.states.append(text)


def test_stages_come_in_the_order_of_dvc_yaml(project: Workspace) -> None:
    assert project.stages() == ["prepare", "finetune", "distill@first", "evaluate@first", "report"]


def test_stage_runs_once_and_is_restored_from_the_run_cache(project: Workspace) -> None:
    assert project.stale() == set()
    before = project.lock_digest()
    change(project.root, "distill", "epochs", 5)
    assert project.stale() == {"distill@first"}
    seen = Collected()
    assert project.reproduce("distill@first", seen) is Outcome.RAN
    assert "INFO tasks.distill@first: trained" in seen.lines
    assert "100%|##" in seen.lines
    assert project.reproduce("distill@first", seen) is Outcome.UNCHANGED
    assert project.lock_digest() != before
    change(project.root, "distill", "epochs", 4)
    assert project.reproduce("distill@first", seen) is Outcome.RESTORED
    assert project.lock_digest() == before


def test_failure_carries_the_stages_own_message(project: Workspace) -> None:
    change(project.root, "distill", "epochs", 13)
    with pytest.raises(StageError) as failure:
        project.reproduce("distill@first", Collected())
    assert str(failure.value) == "distill: thirteen epochs are too many"


def test_crash_names_the_stage_and_its_last_line(project: Workspace) -> None:
    (project.root / "data" / "prepare" / "train.parquet").write_text("changed")
    (project.root / "pipeline.py").write_text("import nowhere\n")
    with pytest.raises(StageError, match="stage prepare crashed: ModuleNotFoundError: No module"):
        project.reproduce("prepare", Collected())


def test_what_dvc_cannot_read_is_its_own_message(project: Workspace) -> None:
    (project.root / "dvc.yaml").write_text("stages: [")
    with pytest.raises(Exception, match=r"dvc stage list .*: .*dvc\.yaml"):
        project.stages()


def test_second_retraining_is_refused(project: Workspace) -> None:
    with (
        project.exclusive(),
        pytest.raises(WorkspaceBusyError, match=f"process {os.getpid()}"),
        project.exclusive(),
    ):
        pass
    with project.exclusive():
        pass


def test_git_state_ignores_dvc_lock(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)

    workspace = Workspace(tmp_path)
    assert workspace.git().commit is None
    git("init", "-q")
    (tmp_path / "dvc.lock").write_text("a")
    git("add", ".")
    git("commit", "-qm", "first")
    (tmp_path / "dvc.lock").write_text("b")
    state = workspace.git()
    assert state.commit is not None and not state.dirty
    (tmp_path / "code.py").write_text("")
    assert workspace.git().dirty


def test_splitter_shows_bars_as_they_move_and_keeps_their_end() -> None:
    seen = Collected()
    splitter = LineSplitter(seen)
    for chunk in (b"start\n", b"\r10%", b"\r20%\r30%", b"\r100% \xe2\x96", b"\x88\nend"):
        splitter.feed(chunk)
    splitter.close()
    assert seen.lines == ["start", "100% █", "end"]
    assert seen.states[:2] == ["10%", "30%"]


CHILD = "import os, time; print('pid', os.getpid(), flush=True); time.sleep(60)"
FAMILY = f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {CHILD!r}])
time.sleep(60)
"""


def test_exception_ends_the_whole_process_group(tmp_path: Path) -> None:
    class Cancelled(BaseException):
        pass

    class Cancelling(Collected):
        def line(self, text: str) -> None:
            super().line(text)
            raise Cancelled

    seen = Cancelling()
    with pytest.raises(Cancelled):
        run_group([sys.executable, "-c", FAMILY], tmp_path, dict(os.environ), seen)
    grandchild = int(seen.lines[0].split()[1])
    deadline = time.monotonic() + 5
    while _runs(grandchild) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(grandchild)


def test_signal_ends_a_stage_that_says_nothing(tmp_path: Path) -> None:
    # a shell starts its background jobs with Ctrl-C ignored, and this test may be one
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    started = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            run_group(["sleep", "60"], tmp_path, dict(os.environ), Collected())
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started < 10


def _runs(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
