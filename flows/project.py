"""A project as every step after the stages sees it: its folder, its settings and its record."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient

from firstkd.proxies import check_proxies
from firstkd.settings import Settings, load_settings
from flows.tracking import Tracking, clear_errors, open_tracking
from flows.workspace import Workspace
from tasks.layout import evaluation_folder, model_folder


@dataclass(frozen=True)
class Student:
    """The student that is recorded and registered; its folders are relative to the project."""

    name: str
    weights: Path
    evaluation: Path


@dataclass(frozen=True)
class Project:
    workspace: Workspace
    settings: Settings
    tracking: Tracking

    @property
    def root(self) -> Path:
        return self.workspace.root

    @property
    def client(self) -> MlflowClient:
        return self.tracking.client

    @property
    def model(self) -> str:
        """The name of the registered model."""
        return self.settings.record.registered_model

    @property
    def student(self) -> Student:
        name = self.settings.record.student
        return Student(name, model_folder(Path(), name), evaluation_folder(Path(), name))


def load_workspace(root: Path) -> tuple[Workspace, Settings]:
    settings = load_settings(root / "params.yaml")
    return Workspace(root.resolve(), settings.retrain.stop_seconds), settings


@contextmanager
def opened(root: Path) -> Iterator[Project]:
    """Connect to a project's record; an MLflow error in the body becomes one PipelineError."""
    workspace, settings = load_workspace(root)
    check_proxies()
    tracking = open_tracking(workspace.root, settings.record)
    with clear_errors(tracking):
        yield Project(workspace, settings, tracking)
