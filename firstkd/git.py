"""The project folder as git sees it."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from firstkd.errors import PipelineError

REASONS = ("fatal: ", "error: ", " ! ")
SECONDS = 600.0
"""Timeout of a git command: nobody may be watching when a remote does not answer."""
SHOWN_CHANGES = 3
"""Uncommitted files named in the message."""


class GitError(PipelineError):
    """Git refused; the message is the line in which it says why."""


@dataclass(frozen=True)
class GitState:
    commit: str | None
    """None outside git and before the first commit."""
    problem: str | None
    """Why the commit alone does not rebuild this; changes to dvc.lock, the result, do not count."""


def git(root: Path, *arguments: str, env: Mapping[str, str] | None = None) -> str:
    """Run git and return its output; raises GitError with git's own message."""
    environment = {**os.environ, **(env or {})}
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=root,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    except FileNotFoundError as error:
        raise GitError("git is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise GitError(f"git {arguments[0]} took more than {SECONDS:.0f} s") from error
    if done.returncode:
        lines = (done.stderr.strip() or f"git {arguments[0]} failed").splitlines()
        # the output of a refused push begins with the address
        reason = next((line for line in lines if line.startswith(REASONS)), lines[0])
        raise GitError(reason.strip().removeprefix("fatal: ").removeprefix("error: "))
    return done.stdout.strip()


def git_or_none(root: Path, *arguments: str, env: Mapping[str, str] | None = None) -> str | None:
    """Return git's output, or None if it exits with an error, which is how it says no."""
    try:
        return git(root, *arguments, env=env)
    except GitError:
        return None


def git_state(root: Path) -> GitState:
    """Return the git state of this folder; being outside git is a state, not an error."""
    try:
        commit = git(root, "rev-parse", "--verify", "HEAD")
        git(root, "ls-files", "--error-unmatch", "dvc.yaml", "params.yaml")
    except GitError as error:
        return GitState(None, f"it was made outside git ({error})")
    changes = git(root, "status", "--porcelain", "--", ".", ":!dvc.lock").splitlines()
    if not changes:
        return GitState(commit, None)
    names = [change.split(maxsplit=1)[1] for change in changes[:SHOWN_CHANGES]]
    shown = ", ".join([*names, "…"] if len(changes) > SHOWN_CHANGES else names)
    return GitState(commit, f"it was made with uncommitted changes ({shown})")
