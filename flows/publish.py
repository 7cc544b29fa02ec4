"""Make a retraining's result available elsewhere: `dvc push`, and dvc.lock on a git branch.

Neither touches the checked-out branch, its index or its files.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from firstkd.errors import ConfigError
from firstkd.settings import PublishSettings
from flows.workspace import GitError, Workspace

PUBLISHED_TAG = "published"
"""Of a retraining's run: the settings that it was published by."""
IDENTITY = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "firstkd"), ("EMAIL", "firstkd@localhost"))
}
"""Of the pipeline's own commits: a fresh worker has no other."""


def publish(workspace: Workspace, settings: PublishSettings) -> list[str]:
    """Do what the settings ask for, and return one sentence about each thing done.

    The data go first: a published dvc.lock names only what can be pulled.
    """
    done = []
    if settings.push:
        if not workspace.remotes():
            raise ConfigError(
                "publish.push in params.yaml needs a DVC remote; add one with "
                "`dvc remote add --default NAME URL`"
            )
        workspace.push()
        done.append("the outputs are pushed to the DVC remote")
    if settings.branch:
        if problem := workspace.git().problem:
            done.append(f"dvc.lock is not committed to {settings.branch}: {problem}")
        else:
            done.append(commit_lock(workspace, settings.branch))
            if settings.git_remote:
                quietly = {"GIT_TERMINAL_PROMPT": "0"}  # nobody is there to answer
                workspace.run_git("push", settings.git_remote, settings.branch, env=quietly)
                done.append(f"{settings.branch} is pushed to {settings.git_remote}")
    return done


def is_published(settings: PublishSettings, run_tags: Mapping[str, str]) -> bool:
    """Whether a run says that all that is asked for was done; nothing may be asked for."""
    asked = settings.push or settings.branch is not None
    return not asked or run_tags.get(PUBLISHED_TAG) == settings.model_dump_json()


def commit_lock(workspace: Workspace, branch: str) -> str:
    """Commit the present commit's files with the present dvc.lock to a branch; say what was done.

    Nothing is committed where the branch holds the same already.
    """
    git, reference = workspace.run_git, f"refs/heads/{branch}"
    if _succeeds(workspace, "symbolic-ref", "HEAD") == reference:
        raise ConfigError(
            f"publish.branch: {branch} is checked out here, and what is checked out is not "
            "touched; name a branch of its own"
        )
    head = git("rev-parse", "HEAD")
    tip = _succeeds(workspace, "rev-parse", "--verify", "--quiet", reference)
    tree = _tree_with_lock(workspace)
    if tip and git("rev-parse", f"{tip}^{{tree}}") == tree:
        return f"{branch} holds this dvc.lock already ({tip[:8]})"
    parents = [head]
    if tip:
        merged = _succeeds(workspace, "merge-base", "--is-ancestor", head, tip) is not None
        parents = [tip] if merged else [tip, head]
    message = f"Retrain\n\ndvc.lock {workspace.lock_digest()}\n"
    arguments = [word for parent in parents for word in ("-p", parent)]
    commit = git("commit-tree", tree, *arguments, "-m", message, env=IDENTITY)
    git("update-ref", "-m", "firstkd: retrain", reference, commit, tip or "")
    return f"dvc.lock is committed to {branch} ({commit[:8]})"


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


def _succeeds(workspace: Workspace, *arguments: str) -> str | None:
    """Return what git says, or None where it exits with an error: its way to say no."""
    try:
        return workspace.run_git(*arguments)
    except GitError:
        return None
