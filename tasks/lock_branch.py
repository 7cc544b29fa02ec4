"""dvc.lock on a separate git branch, so that another machine can continue from it.

The checked-out branch, its index and its files are not touched.
"""

import os
import tempfile
from pathlib import Path

from firstkd.errors import ConfigError
from firstkd.files import sha256_of
from firstkd.git import git, git_or_none

IDENTITY = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "firstkd"), ("EMAIL", "firstkd@localhost"))
}
"""Author of the pipeline's own commits: a fresh worker has none configured."""


def publish_lock(root: Path, branch: str, remote: str | None) -> list[str]:
    """Commit dvc.lock to a branch, and push it to a remote if one is named; say what was done.

    Raises ConfigError for a branch that is checked out, or an unknown remote.
    """
    reference = f"refs/heads/{branch}"
    if remote is None:
        return [_commit_lock(root, branch, [reference])]
    known = git(root, "remote").split()
    if remote not in known:  # git would take it for a path
        raise ConfigError(
            f"publish.git_remote: {remote!r} is not a remote of this repository; allowed: {known}"
        )
    # neither git nor ssh, however it is configured, may prompt
    configured = git_or_none(root, "config", "core.sshCommand")
    ssh = os.environ.get("GIT_SSH_COMMAND") or configured or "ssh"
    alone = {"GIT_TERMINAL_PROMPT": "0", "GIT_SSH_COMMAND": f"{ssh} -o BatchMode=yes"}
    # what other machines have published; the first machine finds no such branch
    theirs = f"refs/remotes/{remote}/{branch}"
    git_or_none(root, "fetch", remote, f"+{reference}:{theirs}", env=alone)
    done = _commit_lock(root, branch, [reference, theirs])
    git(root, "push", remote, f"{reference}:{reference}", env=alone)
    return [done, f"{branch} was pushed to {remote}"]


def holds_lock(root: Path, branch: str) -> bool:
    """Whether a branch has this dvc.lock."""
    theirs = git_or_none(root, "rev-parse", "--verify", "--quiet", f"{branch}:./dvc.lock")
    return theirs == git(root, "hash-object", "dvc.lock")


def _commit_lock(root: Path, branch: str, references: list[str]) -> str:
    """Commit the files of HEAD with the current dvc.lock to a branch; say what was done.

    The commit descends from all `references` that exist. Nothing is committed if the latest of
    them has the same content already.
    """
    reference = references[0]
    if git_or_none(root, "symbolic-ref", "HEAD") == reference:
        raise ConfigError(
            f"publish.branch: {branch} is checked out here, and the checked-out branch is never "
            "touched; name another branch, or leave this one with `git switch --detach`"
        )
    tips = [git_or_none(root, "rev-parse", "--verify", "--quiet", each) for each in references]
    published = [tip for tip in tips if tip]
    parents = git(root, "merge-base", "--independent", *published, "HEAD").split()
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        git(root, "read-tree", "HEAD", env=index)
        git(root, "add", "--force", "dvc.lock", env=index)
        tree = git(root, "write-tree", env=index)
    latest = parents[0]
    holds = git(root, "rev-parse", f"{latest}^{{tree}}") == tree
    if parents == [latest] and latest in published and holds:
        git(root, "update-ref", reference, latest)
        return f"{branch} already holds this dvc.lock ({latest[:8]})"
    ancestry = [word for parent in parents for word in ("-p", parent)]
    message = f"Retrain\n\ndvc.lock {sha256_of(root / 'dvc.lock')}\n"
    commit = git(root, "commit-tree", tree, *ancestry, "-m", message, env=IDENTITY)
    git(root, "update-ref", "-m", "firstkd: retrain", reference, commit, tips[0] or "")
    return f"dvc.lock was committed to {branch} ({commit[:8]})"
