import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from firstkd.errors import ArtifactError, PipelineError
from firstkd.git import git_state
from firstkd.processes import LineSplitter, run_group
from flows.dvc import Outcome, StageError, TransientStageError, WorkspaceBusyError
from flows.workspace import Workspace
from tests.flows.projects import Quiet, change, dvc, git, is_alive


class Collected:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.states: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    def progress(self, text: str) -> None:
        self.states.append(text)


def test_stages_come_in_the_order_of_dvc_yaml(project: Workspace) -> None:
    assert project.stages() == [
        "prepare",
        "model-teacher",
        "model-first",
        "evaluate-first",
        "report",
    ]


def test_stage_runs_once_and_is_restored_from_the_run_cache(project: Workspace) -> None:
    assert project.stale() == set()
    before = project.lock_digest()
    change(project.root, "train.distill", "epochs", 5)
    assert project.stale() == {"model-first"}
    seen = Collected()
    assert project.reproduce("model-first", seen) is Outcome.RAN
    assert "INFO model-first: trained" in seen.lines
    assert "100%|##" in seen.lines
    assert project.reproduce("model-first", seen) is Outcome.UNCHANGED
    assert project.lock_digest() != before
    change(project.root, "train.distill", "epochs", 4)
    assert project.reproduce("model-first", seen) is Outcome.RESTORED
    assert project.lock_digest() == before


def test_failure_carries_the_stages_own_message(project: Workspace) -> None:
    change(project.root, "train.distill", "epochs", 13)
    with pytest.raises(StageError) as failure:
        project.reproduce("model-first", Collected())
    assert str(failure.value) == "model: thirteen epochs are too many"


MISTAKES = {
    "a bar is open": ("sys.stderr.write('50%|#')", 2, StageError),
    "it mentions a crash": ("print('Traceback: Killed')", 2, StageError),
    "sources are away": ("pass", 3, TransientStageError),
    "it looks like a mistake": ("pass", 1, TransientStageError),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_the_exit_code_of_a_stage_says_what_kind_its_error_is(
    project: Workspace, case: str
) -> None:
    before, code, kind = MISTAKES[case]
    (project.root / "data" / "prepare" / "train.parquet").write_text("changed")
    lines = ["import sys", before, "sys.stderr.write('\\nprepare: row 3: no\\n  more\\n')"]
    (project.root / "pipeline.py").write_text("\n".join([*lines, f"sys.exit({code})", ""]))
    with pytest.raises(StageError) as failure:
        project.reproduce("prepare", Collected())
    assert type(failure.value) is kind
    if code != 1:
        assert str(failure.value) == "prepare: row 3: no\n  more"


def test_crash_names_the_stage_and_its_last_line(project: Workspace) -> None:
    (project.root / "data" / "prepare" / "train.parquet").write_text("changed")
    (project.root / "pipeline.py").write_text("import nowhere\n")
    with pytest.raises(TransientStageError, match="prepare crashed with exit code 1: ModuleNot"):
        project.reproduce("prepare", Collected())


def test_what_dvc_cannot_read_is_its_own_message(project: Workspace) -> None:
    (project.root / ".dvc" / "config").write_text("[core")
    with pytest.raises(PipelineError, match=r"dvc stage list .*: .*config") as raised:
        project.stages()
    assert "troubles" not in str(raised.value)


CONFLICT = "<<<<<<< HEAD\n  x: 1\n=======\n  y: 2\n>>>>>>> branch\n"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("dvc.lock", CONFLICT, "dvc.lock is invalid, .*; delete it"),
        ("dvc.lock", "", "dvc.lock validation failed, .*; delete it"),
        ("dvc.yaml", CONFLICT, "dvc.yaml is invalid, .*; `firstkd graph` rewrites it"),
    ],
)
def test_a_damaged_file_of_dvcs_is_told_with_what_to_do(
    project: Workspace, name: str, content: str, said: str
) -> None:
    (project.root / name).write_text(content)
    with pytest.raises(ArtifactError, match=said):
        project.changes()
    with pytest.raises(ArtifactError, match=said):
        project.reproduce("report", Quiet())


def test_links_that_lead_nowhere_are_told_with_what_to_do(project: Workspace) -> None:
    dvc(project.root, "config", "cache.type", "symlink")
    dvc(project.root, "checkout", "--relink", "--quiet")
    moved = Workspace(shutil.move(project.root, project.root.with_name("moved")))
    with pytest.raises(ArtifactError, match="dvc checkout --relink --force"):
        moved.changes()
    dvc(moved.root, "checkout", "--relink", "--force", "--quiet")
    assert moved.changes() == {}


def test_second_retraining_is_refused(project: Workspace) -> None:
    with (
        project.exclusive(),
        pytest.raises(WorkspaceBusyError, match=f"process {os.getpid()}"),
        project.exclusive(),
    ):
        pass
    with project.exclusive():
        pass


def test_git_state_ignores_dvc_lock_and_names_the_changes(tmp_path: Path) -> None:
    assert "made outside git (not a git repository" in str(git_state(tmp_path).problem)
    for name in ("dvc.lock", "dvc.yaml", "params.yaml"):
        (tmp_path / name).write_text("a")
    git(tmp_path, "init", "-q")
    assert git_state(tmp_path).commit is None
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    (tmp_path / "dvc.lock").write_text("b")
    state = git_state(tmp_path)
    assert state.commit is not None and state.problem is None
    (tmp_path / "params.yaml").write_text("c")
    for number in range(3):
        (tmp_path / f"code{number}.py").write_text("")
    problem = "it was made with uncommitted changes (params.yaml, code0.py, code1.py, …)"
    assert git_state(tmp_path).problem == problem


def test_folder_that_an_outer_repository_ignores_is_outside_git(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / ".gitignore").write_text("inner/\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    (tmp_path / "inner").mkdir()
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / "inner" / name).write_text("a")
    assert "made outside git" in str(git_state(tmp_path / "inner").problem)


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
        run_group([sys.executable, "-c", FAMILY], tmp_path, dict(os.environ), seen, 30)
    grandchild = int(seen.lines[0].split()[1])
    deadline = time.monotonic() + 5
    while is_alive(grandchild) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(grandchild)


def test_killed_flow_leaves_no_stage_behind(tmp_path: Path) -> None:
    runner = f"""
import os, sys
from pathlib import Path
from firstkd.processes import run_group
class Printed:
    def line(self, text): print(text, flush=True)
    def progress(self, text): pass
run_group([sys.executable, "-c", {FAMILY!r}], Path("."), dict(os.environ), Printed(), 30)
"""
    flow = subprocess.Popen([sys.executable, "-c", runner], stdout=subprocess.PIPE, text=True)
    assert flow.stdout is not None
    grandchild = int(flow.stdout.readline().split()[1])
    flow.kill()
    flow.wait()
    deadline = time.monotonic() + 5
    while is_alive(grandchild) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(grandchild)


def test_signal_ends_a_stage_that_says_nothing(tmp_path: Path) -> None:
    # a shell starts its background jobs with Ctrl-C ignored, and this test may be one
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    started = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            run_group(["sleep", "60"], tmp_path, dict(os.environ), Collected(), 30)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started < 10
