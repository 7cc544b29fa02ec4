"""The retraining: every stage that dvc.yaml declares, then the record, the gate and the report.

Prefect shows each stage as a task run of the same name, with its state, duration and log. DVC
decides whether a stage has anything to do: one that is up to date ends as `Unchanged`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import FlowRun, State
from prefect.logging import get_run_logger
from prefect.states import Completed

from firstkd.errors import ConfigError, PipelineError
from firstkd.notify import notify
from firstkd.operation_settings import RetrainSettings
from firstkd.settings import load_settings
from flows.conclude import Concluded, conclude
from flows.dvc import Outcome, TransientStageError
from flows.lock import check_lock
from flows.project import Project, load_workspace, opened
from flows.publish import publish_once
from flows.workspace import Workspace
from tasks.graph import refresh_graph
from tasks.tables import load_metrics, markdown_table
from tasks.terminal import Terminal, terminal

SECONDS_PER_MINUTE = 60.0


@dataclass(frozen=True)
class Retrained:
    outcomes: dict[str, Outcome]
    concluded: Concluded


def announce_crash(flow: Any, flow_run: FlowRun, state: State[Any]) -> None:
    """Announce a run that was killed before it could say so; the schedule or worker calls this.

    A run started by hand is not announced: its user sees it end.
    """
    if flow_run.deployment_id:
        root = Path(flow_run.parameters["root"])
        webhook = load_settings(root / "params.yaml").retrain.webhook
        notify(webhook, root, "failed", str(state.message))


@flow(name="retrain", on_crashed=[announce_crash])
def retrain(root: str = ".") -> Retrained:
    """Bring the pipeline in `root` up to date, record it, and run its student through the gate.

    Raises PipelineError for what a user can fix: before the first stage if MLflow does not answer
    or another retraining runs here, later with the failed stage's own message.
    """
    folder, webhook = Path(root).resolve(), None
    try:
        workspace, settings = load_workspace(folder)
        webhook = settings.retrain.webhook
        with workspace.exclusive():
            refresh_graph(folder, settings)
            with opened(folder) as project:  # find MLflow problems before hours pass
                check_lock(project.tracking)
            outcomes = _run_stages(workspace, settings.retrain)
            with opened(folder) as project:
                return Retrained(outcomes, _conclude(project))
    except Exception as error:
        notify(webhook, folder, "failed", str(error))
        raise


def _run_stages(workspace: Workspace, settings: RetrainSettings) -> dict[str, Outcome]:
    """Run each stage as a task; ask DVC again only once something upstream may have changed.

    Asking takes a second, so one query covers all stages until the first one runs.
    """
    stale, outcomes = workspace.stale(), dict[str, Outcome]()
    for stage in workspace.stages():
        asks_dvc = stage in stale or set(outcomes.values()) - {Outcome.UNCHANGED} != set()
        run = _step(run_stage, settings, stage, retried=TransientStageError)
        outcomes[stage] = Outcome(run(workspace, stage, asks_dvc).name)
    return outcomes


def run_stage(workspace: Workspace, stage: str, asks_dvc: bool) -> Any:
    """Return a completed state with the name of the stage's Outcome."""
    screen = terminal.get()
    if not asks_dvc:
        return Completed(name=Outcome.UNCHANGED.value)
    screen.begin(stage)
    try:
        outcome = workspace.reproduce(stage, _RunLog(screen))
    except TransientStageError:
        screen.end("failed")
        raise
    if outcome is Outcome.RESTORED:  # an earlier run's cost says nothing about these files
        (workspace.root / "logs" / stage / "cost.json").unlink(missing_ok=True)
    screen.end(outcome.value.lower())
    return Completed(name=outcome.value)


def _conclude(project: Project) -> Concluded:
    settings = project.settings.retrain
    concluded = conclude(project, lambda function: _step(function, settings, function.__name__))
    _show(project, concluded)
    publish = _step(publish_once, settings, "publish", retried=Exception)
    for words in publish(project, concluded.version, _RunLog(terminal.get())):
        get_run_logger().info("%s", words)
    return concluded


def _step(
    function: Callable[..., Any],
    settings: RetrainSettings,
    name: str,
    retried: type[Exception] | None = None,
) -> Callable[..., Any]:
    """Return a function as a task with a timeout, retried after errors of type `retried`."""

    def may_pass_next_time(_task: Any, _task_run: Any, state: State[Any]) -> bool:
        error = state.result(raise_on_failure=False)
        is_mistake = retried is None or isinstance(error, ConfigError | TimeoutError)
        return not is_mistake and isinstance(error, retried or ())

    options: dict[str, Any] = {
        "name": name,
        "task_run_name": name,
        "cache_policy": NO_CACHE,
        "timeout_seconds": settings.stage_timeout_minutes * SECONDS_PER_MINUTE,
        "retries": settings.stage_retries,
        "retry_delay_seconds": settings.retry_delay_seconds,
        "retry_condition_fn": may_pass_next_time,
    }
    step: Any = task(**options)(function)

    @wraps(function)
    def in_time(*arguments: Any) -> Any:
        try:
            return step(*arguments)
        except TimeoutError as error:
            raise PipelineError(
                f"{name} took longer than retrain.stage_timeout_minutes in params.yaml allows "
                "and was stopped"
            ) from error

    return in_time


class _RunLog:
    """Sends a stage's lines to Prefect's log of its task run, and everything to the terminal."""

    def __init__(self, screen: Terminal) -> None:
        self._log, self._screen = get_run_logger(), screen

    def line(self, text: str) -> None:
        if text.strip():
            self._log.info("%s", text)
        self._screen.line(text)

    def progress(self, text: str) -> None:
        self._screen.progress(text)


def _show(project: Project, concluded: Concluded) -> None:
    table = markdown_table(load_metrics(project.root, project.settings))
    verdict = concluded.verdict.in_words(f"v{concluded.version.version}")
    create_markdown_artifact(key="results", markdown=f"{table}\n\n{verdict}\n")
