"""Rebuild a registered version from its commit, and compare it with what the registry holds.

The commit is checked out in a git worktree under logs/, so that nothing here is touched.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlflow.artifacts import download_artifacts
from mlflow.entities.model_registry import ModelVersion
from ruamel.yaml import YAML

from firstkd.errors import PipelineError
from firstkd.files import sha256_of
from firstkd.settings import load_settings
from flows.processes import OutputSink
from flows.registry import NOT_REPRODUCIBLE_TAG, run_of
from flows.tracking import Tracking
from flows.workspace import GitError, Workspace

"""The stage that depends on what is not in the commit, and its output."""


@dataclass(frozen=True)
class Reproduced:
    way: str
    """How the files came back: from DVC's cache or remote, or by running the stages."""
    compared: list[str]
    differences: list[str]
    folder: Path
    """The worktree; it is kept only where there are differences to look at."""


def reproduce(
    workspace: Workspace,
    tracking: Tracking,
    version: ModelVersion,
    rebuild: bool,
    sink: OutputSink,
) -> Reproduced:
    """Bring a version's files back and compare hashes, metrics and weights.

    With `rebuild` every stage runs again; otherwise only those whose outputs are in no cache.
    Raises PipelineError when the version says itself that no commit rebuilds it.
    """
    who, commit = f"{version.name} v{version.version}", version.tags["git_commit"]
    if problem := version.tags.get(NOT_REPRODUCIBLE_TAG):
        raise PipelineError(f"{who} cannot be rebuilt: {problem}")
    folder = workspace.root / "logs" / "reproduce" / f"v{version.version}"
    with TemporaryDirectory() as scratch, _worktree(workspace, commit, folder) as there:
        kept = Path(tracking.client.download_artifacts(run_of(version), "", scratch))
        shutil.copy(kept / "dvc.lock", there.root)
        there.use_storage_of(workspace)
        way = _bring_back(there, workspace.root / "sources", rebuild, sink)
        compared = [(False, f"damaged  {path}: not as dvc.lock says") for path in there.damaged()]
        compared += _compare(there.root, kept, tracking, version)
        differences = [words for same, words in compared if not same]
        if not differences:
            workspace.run_git("worktree", "remove", "--force", str(folder))
    return Reproduced(way, [words for _, words in compared], differences, there.root)


@contextmanager
def _worktree(workspace: Workspace, commit: str, folder: Path) -> Iterator[Workspace]:
    """Check a commit out in a folder of its own; yield the project in it.

    It is left where it is for whoever wants to look; a failure removes it.
    """
    shutil.rmtree(folder, ignore_errors=True)  # an earlier attempt's
    git = workspace.run_git
    git("worktree", "prune")
    try:
        git("worktree", "add", "--detach", str(folder), commit)
        yield Workspace(folder / git("rev-parse", "--show-prefix"))
    except GitError as error:
        raise PipelineError(f"commit {commit} cannot be checked out: {error}") from error
    except BaseException:
        git("worktree", "remove", "--force", str(folder))
        raise


def _bring_back(there: Workspace, sources: Path, rebuild: bool, sink: OutputSink) -> str:
    """Bring the files back; say how.

    What was fetched then comes from DVC's copy, and from today's sources only where there is none.
    """
    if not rebuild and there.restore(sink):
        return "DVC had a copy of everything"
    stages, taken = there.stages(), "what was fetched then"
    fetched = _fetched(there.root)
    if there.restore(sink, *fetched.values()):
        stages = [stage for stage in stages if stage not in fetched]
    else:
        shutil.copytree(sources, there.root / "sources", dirs_exist_ok=True)
        taken = "the sources of today"
    there.reproduce_each(stages, sink, force=rebuild)
    again = "every stage ran again" if rebuild else "what DVC had no copy of was built again"
    return f"{again}, from {taken}"


def _fetched(root: Path) -> dict[str, str]:
    """Return the stages that bring something from elsewhere, and what each writes."""
    roots = load_settings(root / "params.yaml").lineage.roots
    return {"fetch": "data/fetch"} | {f"model-{name}": f"data/model/{name}" for name in roots}


def _compare(
    root: Path, kept: Path, tracking: Tracking, version: ModelVersion
) -> Iterator[tuple[bool, str]]:
    """Yield whether each thing is the same, and a word on it."""
    recorded, found = _outputs(kept / "dvc.lock"), _outputs(root / "dvc.lock")
    for path in sorted(recorded.keys() | found.keys()):
        yield _verdict(path, recorded.get(path, "nothing"), found.get(path, "nothing"))
    student = version.tags["student"]
    for file in sorted((kept / "evaluation").iterdir()):
        again = root / "data" / "evaluate" / student / file.name
        yield _verdict(f"evaluation/{file.name}", sha256_of(file), sha256_of(again))
    with TemporaryDirectory() as scratch:
        model = f"models:/{version.name}/{version.version}"
        with tracking.as_default():
            registered = download_artifacts(f"{model}/artifacts/{student}", dst_path=scratch)
        again = root / "data" / "model" / student
        yield _verdict("the registered student", sha256_of(Path(registered)), sha256_of(again))


def _verdict(what: str, recorded: str, found: str) -> tuple[bool, str]:
    if recorded == found:
        return True, f"same     {what}"
    return False, f"differs  {what}: recorded {recorded[:16]}, found {found[:16]}"


def _outputs(lock: Path) -> dict[str, str]:
    """Return the hash of each output in a dvc.lock."""
    stages = _read_yaml(lock)["stages"].values()
    return {out["path"]: out["md5"] for stage in stages for out in stage.get("outs", [])}


def _read_yaml(path: Path) -> Any:
    return YAML(typ="safe", pure=True).load(path)
