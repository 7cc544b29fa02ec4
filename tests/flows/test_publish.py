"""A retraining's result for others, and versions brought back, on a project in git."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from firstkd.errors import ConfigError, PipelineError
from firstkd.git import GitError
from firstkd.operation_settings import PublishSettings
from flows.project import Project
from flows.publish import publish, publish_once
from flows.record import record
from flows.registry import aliases, register, versions
from flows.reproduce import reproduce
from flows.tracking import Tracking
from flows.workspace import Workspace
from tests.flows.projects import Quiet, change, dvc, git, open_project


@pytest.fixture
def repository(project: Workspace) -> Workspace:
    """The project with everything committed but what the pipeline makes."""
    root = project.root
    ignored = ["/data", "/logs", "/mlflow", "__pycache__/", "/.dvc/tmp", "/.dvc/cache", "dvc.lock"]
    (root / ".gitignore").write_text("\n".join(ignored) + "\n")
    (root / "sources").mkdir()
    (root / "sources" / "README.md").write_text("")
    git(root, "init", "-q", "-b", "main")
    git(root, "add", ".")
    git(root, "commit", "-qm", "all")
    return project


@pytest.fixture
def opened_repository(repository: Workspace) -> Project:
    return open_project(repository.root)


@pytest.fixture
def tracking(opened_repository: Project) -> Tracking:
    return opened_repository.tracking


def branch(name: str | None) -> PublishSettings:
    return PublishSettings(push=False, branch=name, git_remote=None)


def test_lock_is_committed_beside_the_users_branch(repository: Workspace) -> None:
    root = repository.root
    head = git(root, "rev-parse", "HEAD")
    (root / "dvc.yaml").touch()
    said = publish(repository, branch("retrained"), Quiet())
    assert said[0].startswith("dvc.lock was committed to retrained (")
    assert git(root, "show", "retrained:dvc.lock") == (root / "dvc.lock").read_text().strip()
    assert git(root, "show", "retrained:params.yaml") == (root / "params.yaml").read_text().strip()
    assert git(root, "log", "-1", "--format=%an %P", "retrained") == f"firstkd {head}"
    assert git(root, "rev-parse", "HEAD") == head and git(root, "status", "--porcelain") == ""
    again = publish(repository, branch("retrained"), Quiet())
    assert again[0].startswith("retrained already holds this dvc.lock")

    change(root, "train.distill", "epochs", 5)
    refused = publish(repository, branch("retrained"), Quiet())
    assert "not committed to retrained: it was made with uncommitted changes" in refused[0]
    git(root, "commit", "-qam", "five epochs")
    dvc(root, "repro", "--quiet")
    publish(repository, branch("retrained"), Quiet())
    parents = git(root, "log", "-1", "--format=%P", "retrained").split()
    assert len(parents) == 2 and parents[1] == git(root, "rev-parse", "HEAD")


def test_checked_out_branch_is_not_touched(repository: Workspace) -> None:
    with pytest.raises(ConfigError, match=r"publish\.branch: main is checked out here"):
        publish(repository, branch("main"), Quiet())


def test_fresh_worker_goes_on_from_what_was_published(
    repository: Workspace, tmp_path: Path
) -> None:
    root = repository.root
    both = PublishSettings(push=True, branch="retrained", git_remote="origin")
    with pytest.raises(ConfigError, match=r"publish\.push .* needs a DVC remote"):
        publish(repository, both, Quiet())
    dvc(root, "remote", "add", "--default", "storage", str(tmp_path / "remote"))
    git(root, "commit", "-qam", "storage")
    with pytest.raises(ConfigError, match=r"publish\.git_remote: 'origin' is not a remote of this"):
        publish(repository, both, Quiet())
    git(tmp_path, "init", "-q", "--bare", "shared")
    git(root, "remote", "add", "origin", str(tmp_path / "shared"))
    assert len(publish(repository, both, Quiet())) == 3
    git(tmp_path, "clone", "-q", "-b", "retrained", str(tmp_path / "shared"), "worker")
    worker = Workspace(tmp_path / "worker")
    assert worker.restore(Quiet())
    assert worker.stale() == set()
    model = "data/model/first/model.safetensors"
    assert (worker.root / model).read_bytes() == (root / model).read_bytes()


def test_the_key_that_ssh_is_configured_with_is_used(
    repository: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, asked = repository.root, PublishSettings(push=False, branch="new", git_remote="origin")
    ssh = tmp_path / "ssh"
    ssh.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nexit 1\n')
    ssh.chmod(0o755)
    git(root, "remote", "add", "origin", "ssh://git@127.0.0.1/project")
    git(root, "config", "core.sshCommand", f"{ssh} -i configured")
    with pytest.raises(GitError):
        publish(repository, asked, Quiet())
    assert "-i configured -o BatchMode=yes " in (tmp_path / "asked").read_text()
    monkeypatch.setenv("GIT_SSH_COMMAND", f"{ssh} -i of-the-environment")
    with pytest.raises(GitError):
        publish(repository, asked, Quiet())
    assert "-i of-the-environment -o BatchMode=yes " in (tmp_path / "asked").read_text()


def test_what_another_machine_has_published_is_followed(
    repository: Workspace, tmp_path: Path
) -> None:
    root, asked = repository.root, PublishSettings(push=False, branch="new", git_remote="origin")
    git(tmp_path, "init", "-q", "--bare", "shared")
    git(root, "remote", "add", "origin", str(tmp_path / "shared"))
    publish(repository, asked, Quiet())
    first = git(root, "rev-parse", "new")
    git(tmp_path, "clone", "-q", "-b", "new", str(tmp_path / "shared"), "other")
    other = Workspace(tmp_path / "other")
    git(other.root, "switch", "-q", "--detach")
    (other.root / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    publish(other, asked, Quiet())
    second = git(other.root, "rev-parse", "new")
    assert git(other.root, "log", "-1", "--format=%P", "new") == first
    change(root, "train.distill", "epochs", 5)
    git(root, "commit", "-qam", "five epochs")
    dvc(root, "repro", "--quiet")
    publish(repository, asked, Quiet())
    head = git(root, "rev-parse", "HEAD")
    assert git(root, "log", "-1", "--format=%P", "new").split() == [second, head]
    assert git(tmp_path / "shared", "rev-parse", "new") == git(root, "rev-parse", "new")


def test_a_state_is_published_once_for_the_same_settings(opened_repository: Project) -> None:
    root = opened_repository.root

    def asked(name: str) -> Project:
        settings = opened_repository.settings.model_copy(update={"publish": branch(name)})
        return replace(opened_repository, settings=settings)

    version = register(opened_repository, record(opened_repository).run_id)
    (root / "notes").touch()
    assert "not committed" in publish_once(asked("first"), version, Quiet())[0]
    (root / "notes").unlink()
    assert "was committed to first" in publish_once(asked("first"), version, Quiet())[0]
    assert publish_once(asked("first"), version, Quiet()) == []
    git(root, "branch", "--force", "first", "HEAD")  # as if another state had been published since
    assert "was committed to first" in publish_once(asked("first"), version, Quiet())[0]
    assert "was committed to second" in publish_once(asked("second"), version, Quiet())[0]


def test_a_student_that_the_run_has_not_recorded_is_not_registered(
    repository: Workspace, opened_repository: Project, tracking: Tracking
) -> None:
    root = repository.root
    run_id = record(opened_repository).run_id
    change(root, "train.distill", "epochs", 5)
    dvc(root, "repro", "--quiet")  # from another terminal
    with pytest.raises(PipelineError, match="results were changed while being recorded"):
        register(opened_repository, run_id)
    assert versions(opened_repository) == []


def test_a_registration_that_was_interrupted_gets_its_alias(
    repository: Workspace,
    opened_repository: Project,
    tracking: Tracking,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_id = record(opened_repository).run_id

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tracking.client, "set_registered_model_alias", killed)
        register(opened_repository, run_id)
    assert aliases(opened_repository) == {}
    version = register(opened_repository, run_id)
    assert aliases(opened_repository) == {"challenger": str(version.version)}
    assert len(versions(opened_repository)) == 1


def test_a_damaged_copy_is_named(
    repository: Workspace, opened_repository: Project, tracking: Tracking
) -> None:
    root = repository.root
    run_id = record(opened_repository).run_id
    version = register(opened_repository, run_id)
    digest = hashlib.md5((root / "data/model/teacher/model.safetensors").read_bytes()).hexdigest()
    (copy,) = (root / ".dvc/cache/files/md5").rglob(digest[2:])
    copy.chmod(0o644)
    copy.write_bytes(b"damaged")
    found = reproduce(opened_repository, version, rebuild=False, sink=Quiet())
    assert any("damaged  data/model/teacher" in words for words in found.differences)


def test_version_comes_back_the_same(
    repository: Workspace, opened_repository: Project, tracking: Tracking
) -> None:
    root = repository.root
    run_id = record(opened_repository).run_id
    version = register(opened_repository, run_id)
    change(root, "train.distill", "epochs", 5)
    git(root, "commit", "-qam", "five epochs")
    dvc(root, "repro", "--quiet")
    before = (root / "dvc.lock").read_bytes()

    restored = reproduce(opened_repository, version, rebuild=False, sink=Quiet())
    assert restored.way == "DVC had a copy of everything" and not restored.differences
    rebuilt = reproduce(opened_repository, version, rebuild=True, sink=Quiet())
    assert rebuilt.way.startswith("every stage was rerun") and not rebuilt.differences
    assert "same     the registered student" in rebuilt.compared
    assert not rebuilt.folder.exists() and git(root, "worktree", "list").count("\n") == 0

    shutil.rmtree(root / ".dvc" / "cache")
    again = reproduce(opened_repository, version, rebuild=False, sink=Quiet())
    assert again.way.startswith("missing outputs were rebuilt") and not again.differences
    assert (root / "dvc.lock").read_bytes() == before


def test_a_version_older_than_the_remote_comes_back_from_it(
    repository: Workspace, opened_repository: Project, tracking: Tracking, tmp_path: Path
) -> None:
    root = repository.root
    version = register(opened_repository, record(opened_repository).run_id)
    (tmp_path / "remote").mkdir()
    dvc(root, "remote", "add", "--default", "storage", "../remote")  # beside the project
    git(root, "commit", "-qam", "storage")
    dvc(root, "push", "--quiet")
    shutil.rmtree(root / ".dvc" / "cache")
    found = reproduce(opened_repository, version, rebuild=False, sink=Quiet())
    assert found.way == "DVC had a copy of everything" and not found.differences


FETCH_STAGE = """
  fetch:
    cmd: mkdir -p data/fetch && cp sources/* data/fetch
    deps: [sources]
    outs: [data/fetch]
"""


def test_a_rebuild_takes_the_sources_of_then_where_they_are_kept(
    repository: Workspace, opened_repository: Project, tracking: Tracking
) -> None:
    root = repository.root
    with (root / "dvc.yaml").open("a") as file:
        file.write(FETCH_STAGE)
    dvc(root, "repro", "--quiet")
    git(root, "commit", "-qam", "fetch")
    run_id = record(opened_repository).run_id
    version = register(opened_repository, run_id)
    (root / "sources" / "README.md").write_text("other data\n")
    rebuilt = reproduce(opened_repository, version, rebuild=True, sink=Quiet())
    assert rebuilt.way == "every stage was rerun, from the files fetched at the time"
    assert not rebuilt.differences
    [lost] = (out for out in Workspace(root).lock()["report"]["outs"])
    digest = lost["md5"].removesuffix(".dir")
    (copy,) = (root / ".dvc/cache/files/md5").rglob(f"{digest[2:]}.dir")
    copy.unlink()
    partly = reproduce(opened_repository, version, rebuild=False, sink=Quiet())
    assert partly.way == "missing outputs were rebuilt, from the files fetched at the time"
    assert not partly.differences
    shutil.rmtree(root / ".dvc" / "cache")
    rebuilt = reproduce(opened_repository, version, rebuild=True, sink=Quiet())
    assert rebuilt.way == "every stage was rerun, from today's sources"
    [difference] = rebuilt.differences
    assert difference.startswith("differs  data/fetch: recorded ")


def test_version_that_comes_out_otherwise_is_told(
    repository: Workspace, opened_repository: Project, tracking: Tracking
) -> None:
    run_id = record(opened_repository).run_id
    version = register(opened_repository, run_id)
    pipeline = repository.root / "pipeline.py"
    pipeline.write_text(pipeline.read_text().replace('b"weights"', 'b"WEIGHTS"'))
    git(repository.root, "commit", "-qam", "something else")
    client, number = tracking.client, str(version.version)
    commit = git(repository.root, "rev-parse", "HEAD")
    client.set_model_version_tag(version.name, number, "git_commit", commit)
    version = client.get_model_version(version.name, number)
    result = reproduce(opened_repository, version, rebuild=True, sink=Quiet())
    assert len(result.differences) == 3
    assert result.differences[-1].startswith("differs  the registered student: recorded ")
    assert (result.folder / "data" / "model").exists()
    gone = "0" * 40
    client.set_model_version_tag(version.name, number, "git_commit", gone)
    version = client.get_model_version(version.name, number)
    with pytest.raises(PipelineError, match=f"commit {gone} cannot be checked out"):
        reproduce(opened_repository, version, rebuild=False, sink=Quiet())


def test_version_of_uncommitted_changes_is_not_tried(
    repository: Workspace, opened_repository: Project, tracking: Tracking
) -> None:
    (repository.root / "notes.txt").write_text("")
    run_id = record(opened_repository).run_id
    version = register(opened_repository, run_id)
    with pytest.raises(PipelineError, match="v1 cannot be rebuilt: it was made with uncommitted"):
        reproduce(opened_repository, version, rebuild=False, sink=Quiet())
