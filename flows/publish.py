"""Make a retraining's result available elsewhere: `dvc push`, and dvc.lock on a git branch.

Neither touches the checked-out branch, its index or its files.
"""

import os
import tempfile
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion

from firstkd.errors import ConfigError
from firstkd.git import git, git_or_none, git_state
from firstkd.processes import OutputSink
from firstkd.settings import PublishSettings
from flows.project import Project
from flows.registry import run_of
from flows.workspace import Workspace

PUBLISHED_TAG = "published"
"""Tag of a retraining's run: the settings that it was published by."""
IDENTITY = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "firstkd"), ("EMAIL", "firstkd@localhost"))
}
"""Author of the pipeline's own commits: a fresh worker has no other."""


def publish_once(project: Project, version: ModelVersion, sink: OutputSink) -> list[str]:
    """Publish a version's state if the settings ask for it and it was not done; say what was done.

    A state that no commit rebuilds goes to no branch, and is tried again the next time.
    """
    run_id, settings = run_of(version), project.settings.publish
    as_asked = settings.model_dump_json()
    if not (settings.push or settings.branch):
        return []
    if project.client.get_run(run_id).data.tags.get(PUBLISHED_TAG) == as_asked:
        return []
    said = publish(project.workspace, settings, sink)
    if not (settings.branch and git_state(project.root).problem):
        project.client.set_tag(run_id, PUBLISHED_TAG, as_asked)
    return said


def publish(workspace: Workspace, settings: PublishSettings, sink: OutputSink) -> list[str]:
    """Do what the settings ask for; return a sentence about each thing done, or not done.

    The data go first: a published dvc.lock names only what can be pulled.
    """
    done = []
    if settings.push:
        if not workspace.remote_urls():
            raise ConfigError(
                "publish.push in params.yaml needs a DVC remote; add one with "
                "`dvc remote add --default NAME URL`"
            )
        workspace.push(sink)
        done.append("the outputs are pushed to the DVC remote")
    if settings.branch:
        if problem := git_state(workspace.root).problem:
            done.append(f"dvc.lock is not committed to {settings.branch}: {problem}")
        else:
            done += _publish_branch(workspace, settings.branch, settings.git_remote)
    return done


def _publish_branch(workspace: Workspace, branch: str, remote: str | None) -> list[str]:
    root, reference = workspace.root, f"refs/heads/{branch}"
    if remote is None:
        return [_commit_lock(workspace, branch, [reference])]
    known = git(root, "remote").split()
    if remote not in known:  # git would take it for a path
        raise ConfigError(
            f"publish.git_remote: {remote!r} is not a remote of this repository; allowed: {known}"
        )
    # neither git nor ssh, as it is configured, may ask anybody
    configured = git_or_none(root, "config", "core.sshCommand")
    ssh = os.environ.get("GIT_SSH_COMMAND") or configured or "ssh"
    alone = {"GIT_TERMINAL_PROMPT": "0", "GIT_SSH_COMMAND": f"{ssh} -o BatchMode=yes"}
    # what other machines have published; the first one finds no such branch there
    theirs = f"refs/remotes/{remote}/{branch}"
    git_or_none(root, "fetch", remote, f"+{reference}:{theirs}", env=alone)
    done = _commit_lock(workspace, branch, [reference, theirs])
    git(root, "push", remote, f"{reference}:{reference}", env=alone)
    return [done, f"{branch} is pushed to {remote}"]


def _commit_lock(workspace: Workspace, branch: str, references: list[str]) -> str:
    """Commit the present commit's files with the present dvc.lock to a branch; say what was done.

    The commit follows all of `references` that there are. Nothing is committed if the latest of
    them holds the same already.
    """
    root, reference = workspace.root, references[0]
    if git_or_none(root, "symbolic-ref", "HEAD") == reference:
        raise ConfigError(
            f"publish.branch: {branch} is checked out here, and what is checked out is not "
            "touched; name a separate branch, or leave it with `git switch --detach`"
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
        return f"{branch} holds this dvc.lock already ({latest[:8]})"
    ancestry = [word for parent in parents for word in ("-p", parent)]
    message = f"Retrain\n\ndvc.lock {workspace.lock_digest()}\n"
    commit = git(root, "commit-tree", tree, *ancestry, "-m", message, env=IDENTITY)
    git(root, "update-ref", "-m", "firstkd: retrain", reference, commit, tips[0] or "")
    return f"dvc.lock is committed to {branch} ({commit[:8]})"
