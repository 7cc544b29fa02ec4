"""Make a retraining's result available elsewhere: `dvc push`, and dvc.lock on a git branch.

Neither touches the checked-out branch, its index or its files.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from firstkd.errors import ConfigError
from firstkd.settings import PublishSettings
from flows.processes import OutputSink
from flows.workspace import GitError, Workspace

PUBLISHED_TAG = "published"
"""Of a retraining's run: the settings that it was published by."""
IDENTITY = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "firstkd"), ("EMAIL", "firstkd@localhost"))
}
"""Of the pipeline's own commits: a fresh worker has no other."""


@dataclass(frozen=True)
class Published:
    words: list[str]
    """A sentence about each thing done, or not done."""
    is_complete: bool


def publish(workspace: Workspace, settings: PublishSettings, sink: OutputSink) -> Published:
    """Do what the settings ask for.

    The data go first: a published dvc.lock names only what can be pulled. A state that no commit
    rebuilds goes to no branch; it is complete once that is mended.
    """
    done, is_complete = [], True
    if settings.push:
        if not workspace.remote_urls():
            raise ConfigError(
                "publish.push in params.yaml needs a DVC remote; add one with "
                "`dvc remote add --default NAME URL`"
            )
        workspace.push(sink)
        done.append("the outputs are pushed to the DVC remote")
    if settings.branch:
        if problem := workspace.git().problem:
            done.append(f"dvc.lock is not committed to {settings.branch}: {problem}")
            is_complete = False
        else:
            done += _publish_branch(workspace, settings.branch, settings.git_remote)
    return Published(done, is_complete)


def is_published(settings: PublishSettings, run_tags: Mapping[str, str]) -> bool:
    """Whether a run says that all that is asked for was done."""
    return run_tags.get(PUBLISHED_TAG) == settings.model_dump_json()


def _publish_branch(workspace: Workspace, branch: str, remote: str | None) -> list[str]:
    if remote is None:
        return [commit_lock(workspace, branch)]
    known = workspace.run_git("remote").split()
    if remote not in known:  # git would take it for a path
        raise ConfigError(
            f"publish.git_remote: {remote!r} is no remote of this repository; allowed: {known}"
        )
    reference, alone = f"refs/heads/{branch}", _unattended(workspace)
    # what other machines have published; the first one finds no such branch there
    _succeeds(workspace, "fetch", remote, f"+{reference}:refs/remotes/{remote}/{branch}", env=alone)
    done = commit_lock(workspace, branch, remote)
    workspace.run_git("push", remote, f"{reference}:{reference}", env=alone)
    return [done, f"{branch} is pushed to {remote}"]


def _unattended(workspace: Workspace) -> dict[str, str]:
    """Return the environment in which neither git nor ssh, as it is configured, asks anybody."""
    configured = _succeeds(workspace, "config", "core.sshCommand")
    ssh = os.environ.get("GIT_SSH_COMMAND") or configured or "ssh"
    return {"GIT_TERMINAL_PROMPT": "0", "GIT_SSH_COMMAND": f"{ssh} -o BatchMode=yes"}


def commit_lock(workspace: Workspace, branch: str, remote: str | None = None) -> str:
    """Commit the present commit's files with the present dvc.lock to a branch; say what was done.

    The commit follows the branch as it is here and as the remote was seen last. Nothing is
    committed where it holds the same already.
    """
    git, reference = workspace.run_git, f"refs/heads/{branch}"
    if _succeeds(workspace, "symbolic-ref", "HEAD") == reference:
        raise ConfigError(
            f"publish.branch: {branch} is checked out here, and what is checked out is not "
            "touched; name a branch of its own, or leave it with `git switch --detach`"
        )
    tip = _tip(workspace, reference)
    elsewhere = _tip(workspace, f"refs/remotes/{remote}/{branch}") if remote else None
    parents = _latest(workspace, [tip, elsewhere, git("rev-parse", "HEAD")])
    tree = _tree_with_lock(workspace)
    newest = parents[0]
    holds = len(parents) == 1 and git("rev-parse", f"{newest}^{{tree}}") == tree
    if holds and newest in (tip, elsewhere):
        git("update-ref", "-m", "firstkd: follow the remote", reference, newest, tip or "")
        return f"{branch} holds this dvc.lock already ({newest[:8]})"
    message = f"Retrain\n\ndvc.lock {workspace.lock_digest()}\n"
    arguments = [word for parent in parents for word in ("-p", parent)]
    commit = git("commit-tree", tree, *arguments, "-m", message, env=IDENTITY)
    git("update-ref", "-m", "firstkd: retrain", reference, commit, tip or "")
    return f"dvc.lock is committed to {branch} ({commit[:8]})"


def _tip(workspace: Workspace, reference: str) -> str | None:
    return _succeeds(workspace, "rev-parse", "--verify", "--quiet", reference)


def _latest(workspace: Workspace, commits: Sequence[str | None]) -> list[str]:
    """Return those commits that no other of them follows, in their order."""
    known = list(dict.fromkeys(commit for commit in commits if commit))

    def follows(later: str, earlier: str) -> bool:
        return _succeeds(workspace, "merge-base", "--is-ancestor", earlier, later) is not None

    return [c for c in known if not any(follows(other, c) for other in known if other != c)]


def _tree_with_lock(workspace: Workspace) -> str:
    """Write the tree of HEAD with the present dvc.lock, by an index of its own."""
    git = workspace.run_git
    inside = git("rev-parse", "--show-prefix")
    blob = git("hash-object", "-w", "dvc.lock")
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        git("read-tree", "HEAD", env=index)
        entry = f"100644,{blob},{inside}dvc.lock"
        git("update-index", "--add", "--cacheinfo", entry, env=index)
        return git("write-tree", env=index)


def _succeeds(
    workspace: Workspace, *arguments: str, env: dict[str, str] | None = None
) -> str | None:
    """Return what git says, or None where it exits with an error: its way to say no."""
    try:
        return workspace.run_git(*arguments, env=env)
    except GitError:
        return None
