"""Make a retraining's result available elsewhere: `dvc push`, and dvc.lock on a git branch."""

from mlflow.entities.model_registry import ModelVersion

from firstkd.errors import ConfigError
from firstkd.git import git_state
from firstkd.operation_settings import PublishSettings
from firstkd.processes import OutputSink
from flows.project import Project
from flows.registry import run_of
from flows.workspace import Workspace
from tasks.lock_branch import holds_lock, publish_lock

PUBLISHED_TAG = "published"
"""Tag of a retraining's run: the settings that it was published with."""


def publish_once(project: Project, version: ModelVersion, sink: OutputSink) -> list[str]:
    """Publish a version's state, if the settings ask for it and it is not what was published last;
    return what was done. A state that no commit rebuilds goes to no branch, but is tried again."""
    run_id, settings = run_of(version), project.settings.publish
    as_asked = settings.model_dump_json()
    if not (settings.push or settings.branch):
        return []
    done = project.client.get_run(run_id).data.tags.get(PUBLISHED_TAG) == as_asked
    if done and (not settings.branch or holds_lock(project.root, settings.branch)):
        return []
    said = publish(project.workspace, settings, sink)
    if not (settings.branch and git_state(project.root).problem):
        project.client.set_tag(run_id, PUBLISHED_TAG, as_asked)
    return said


def publish(workspace: Workspace, settings: PublishSettings, sink: OutputSink) -> list[str]:
    """Publish as the settings ask; return a sentence about each step done, or not done.

    The data are pushed first, so that a published dvc.lock names only what can be pulled.
    """
    done = []
    if settings.push:
        if not workspace.remote_urls():
            raise ConfigError(
                "publish.push in params.yaml needs a DVC remote; add one with "
                "`dvc remote add --default NAME URL`"
            )
        workspace.push(sink)
        done.append("the outputs were pushed to the DVC remote")
    if settings.branch:
        if problem := git_state(workspace.root).problem:
            done.append(f"dvc.lock was not committed to {settings.branch}: {problem}")
        else:
            done += publish_lock(workspace.root, settings.branch, settings.git_remote)
    return done
