"""Rebuild a registered version from its commit, and compare it with what the registry recorded.

The commit is checked out in a git worktree under logs/, so that nothing here is touched.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow.entities.model_registry import ModelVersion

from firstkd.errors import PipelineError
from firstkd.files import sha256_of
from firstkd.git import GitError, git
from firstkd.processes import OutputSink
from firstkd.settings import load_settings
from flows.project import Project
from flows.registry import NOT_REPRODUCIBLE_TAG, RECALIBRATES_TAG, run_of, student_files
from flows.workspace import Workspace
from tasks.dvc_files import outputs
from tasks.kept import kept


@dataclass(frozen=True)
class Reproduced:
    way: str
    """How the files came back: from DVC's cache or remote, or by running the stages."""
    compared: list[str]
    differences: list[str]
    folder: Path
    """The worktree; it is kept only if there are differences to look at."""


def reproduce(
    project: Project, version: ModelVersion, rebuild: bool, sink: OutputSink
) -> Reproduced:
    """Bring a version's files back and compare hashes, metrics and weights.

    With `rebuild` every stage runs again; otherwise only those whose outputs no cache has.
    Raises PipelineError for a recalibrated version, or one that no commit rebuilds.
    """
    who, commit = f"{version.name} v{version.version}", version.tags["git_commit"]
    if source := version.tags.get(RECALIBRATES_TAG):
        raise PipelineError(
            f"{who} is v{source} with a different calibration: `firstkd reproduce {source}` "
            "rebuilds its weights, and `firstkd recalibrate` refits the calibration"
        )
    if problem := version.tags.get(NOT_REPRODUCIBLE_TAG):
        raise PipelineError(f"{who} cannot be rebuilt: {problem}")
    tracking, workspace = project.tracking, project.workspace
    folder = workspace.root / "logs" / "reproduce" / f"v{version.version}"
    with TemporaryDirectory() as scratch, _worktree(workspace, commit, folder) as there:
        run = tracking.run_files(run_of(version), "", Path(scratch, "run"))
        weights, _ = student_files(tracking, version, Path(scratch, "model"))
        shutil.copy(run / "dvc.lock", there.root)
        there.use_storage_of(workspace)
        way = _bring_back(there, workspace.root / "sources", rebuild, sink)
        differences = [f"damaged  {path}: does not match dvc.lock" for path in there.damaged()]
        recorded, found = outputs(run / "dvc.lock"), outputs(there.root / "dvc.lock")
        for place, again in kept(there.root, load_settings(there.root / "params.yaml")).items():
            if (file := run / place).exists():  # a release without exports kept none
                recorded[place], found[place] = sha256_of(file), sha256_of(again)
        recorded["the registered student"] = sha256_of(weights)
        found["the registered student"] = sha256_of(there.root / version.tags["weights"])
        compared = []
        for what in recorded | found:
            before, now = recorded.get(what, "nothing"), found.get(what, "nothing")
            if before == now:
                compared.append(f"same     {what}")
            else:
                differences.append(f"differs  {what}: recorded {before[:16]}, found {now[:16]}")
        if not differences:
            git(workspace.root, "worktree", "remove", "--force", str(folder))
    return Reproduced(way, [*compared, *differences], differences, there.root)


@contextmanager
def _worktree(workspace: Workspace, commit: str, folder: Path) -> Iterator[Workspace]:
    """Check a commit out in a separate folder; yield the project in it.

    The folder stays for anyone who wants to look; a failure removes it.
    """
    shutil.rmtree(folder, ignore_errors=True)  # from an earlier attempt
    root = workspace.root
    git(root, "worktree", "prune")
    try:
        git(root, "worktree", "add", "--detach", str(folder), commit)
    except GitError as error:
        raise PipelineError(f"commit {commit} cannot be checked out: {error}") from error
    try:
        yield Workspace(folder / git(root, "rev-parse", "--show-prefix"), workspace.stop_seconds)
    except BaseException:
        git(root, "worktree", "remove", "--force", str(folder))
        raise


def _bring_back(there: Workspace, sources: Path, rebuild: bool, sink: OutputSink) -> str:
    """Bring the files back; return how.

    Fetched files come from DVC's copy, and from today's sources only if there is none.
    """
    if not rebuild and there.restore(sink):
        return "DVC had a copy of everything"
    stages, taken = there.stages(), "the files fetched at the time"
    fetched = {stage: out for stage, out in _fetched(there.root).items() if stage in stages}
    if there.restore(sink, *fetched.values()):
        stages = [stage for stage in stages if stage not in fetched]
    else:
        shutil.copytree(sources, there.root / "sources", dirs_exist_ok=True)
        taken = "today's sources"
    there.reproduce_each(stages, sink, force=rebuild)
    again = "every stage was rerun" if rebuild else "missing outputs were rebuilt"
    return f"{again}, from {taken}"


def _fetched(root: Path) -> dict[str, str]:
    """Return the stages that fetch something from elsewhere, and what each writes."""
    roots = load_settings(root / "params.yaml").lineage.roots
    return {"fetch": "data/fetch"} | {f"model-{name}": f"data/model/{name}" for name in roots}
