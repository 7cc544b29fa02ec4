"""Serve registered versions, with this program's code and the registry's files."""

from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow.entities.model_registry import ModelVersion

from firstkd.answering import Answerer
from firstkd.errors import PipelineError
from firstkd.notify import notify
from firstkd.reproducibility import deterministic
from firstkd.serving.app import create_app
from firstkd.serving.batching import Served
from firstkd.serving.drift import Drift
from firstkd.serving.run import run, token_for
from flows import promotion, registry
from flows.project import Project
from flows.tracking import clear_errors
from tasks.layout import log_folder


def load(project: Project, version: ModelVersion) -> Served:
    """Load a version; the code stored with it is not run."""
    with TemporaryDirectory() as scratch:
        files = registry.student_files(project.tracking, version, Path(scratch))
        answerer = Answerer.load(*files, project.settings.serve.abstain_below)
    return Served(f"{version.name} v{version.version}", answerer)


def newest(project: Project, known: str | None = None) -> Served | None:
    """Return the champion, or None if it is `known`; raises PipelineError if there is none."""
    number = registry.aliases(project).get(promotion.CHAMPION)
    if number is None:
        raise PipelineError(f"{project.model} has no champion yet; run `firstkd run` first")
    if f"{project.model} v{number}" == known:
        return None
    return load(project, registry.get_version(project, number))


def serve(project: Project, host: str, port: int, token_file: Path | None) -> None:
    """Serve the champion until stopped."""
    settings = project.settings
    token = token_for(host, token_file)
    deterministic(settings.runtime.seed, settings.runtime.threads)
    other = _registered(project)

    def champion(known: str | None) -> Served | None:
        with clear_errors(project.tracking):
            return newest(project, known)

    def announce(words: str) -> None:
        notify(settings.retrain.webhook, project.root, "drift", words)

    traffic = log_folder(project.root, "traffic")
    drift = None
    if settings.serve.drift:
        file = log_folder(project.root, "drift") / f"{port}.json"
        drift = Drift(settings.serve.drift, file, announce)
    app = create_app(settings.serve, champion, token, other, traffic_folder=traffic, drift=drift)
    run(app, host, port, settings.serve.limits)


def _registered(project: Project) -> Served | None:
    """Load the registered model that questions are passed on to, if one is named."""
    named = project.settings.serve.escalate
    if named is None or named.registered is None:
        return None
    (model, version), client = named.registered, project.client
    if version.isdecimal():
        return load(project, client.get_model_version(model, version))
    return load(project, client.get_model_version_by_alias(model, version))
