"""The project folder as git sees it."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from firstkd.errors import PipelineError

REASONS = ("fatal: ", "error: ", " ! ")
SECONDS = 600.0
"""After which git is given up: nobody may be there when a remote does not answer."""
SHOWN_CHANGES = 3
"""Uncommitted files that are named."""


class GitError(PipelineError):
    """Git refused; the message is its own first line."""


@dataclass(frozen=True)
class GitState:
    commit: str | None
    """None outside git and before the first commit."""
    problem: str | None
    """Why the commit alone does not rebuild this; dvc.lock, the result, does not count."""


def git(root: Path, *arguments: str, env: Mapping[str, str] | None = None) -> str:
    """Run git and return what it says; raises GitError with its own words."""
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
        # a refused push begins with the address
        reason = next((line for line in lines if line.startswith(REASONS)), lines[0])
        raise GitError(reason.strip().removeprefix("fatal: ").removeprefix("error: "))
    return done.stdout.strip()


def git_or_none(root: Path, *arguments: str, env: Mapping[str, str] | None = None) -> str | None:
    """Return what git says, or None if it exits with an error: its way to say no."""
    try:
        return git(root, *arguments, env=env)
    except GitError:
        return None


def git_state(root: Path) -> GitState:
    """Return what git says of this folder; a folder without git is a state, not an error."""
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
