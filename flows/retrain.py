"""The retraining: every stage that dvc.yaml declares, then the record, the gate and the report.

Prefect shows each stage as a task run of its name, with its state, duration and log. Whether a
stage has anything to do is DVC's decision: what is up to date ends as `Unchanged`.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities.model_registry import ModelVersion
from prefect import flow, runtime, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import FlowRun, State
from prefect.logging import get_run_logger
from prefect.states import Completed

from firstkd.errors import ConfigError, PipelineError
from firstkd.settings import RetrainSettings, Settings, load_settings
from flows.curves import LiveRun
from flows.gate import Verdict
from flows.notification import announce, notify
from flows.promotion import CHAMPION, promote
from flows.publish import PUBLISHED_TAG, Published, publish
from flows.record import Recorded, record
from flows.registry import aliases, register, run_of
from flows.results import load_metrics, markdown_image, markdown_table
from flows.terminal import Terminal, terminal
from flows.tracking import Tracking, clear_errors, open_tracking
from flows.workspace import Outcome, TransientStageError, Workspace
from tasks.graph import refresh_graph

SECONDS_PER_MINUTE = 60.0


@dataclass(frozen=True)
class Retrained:
    outcomes: dict[str, Outcome]
    recorded: Recorded
    version: str
    verdict: Verdict
    champion: str | None
    """The version in charge now."""


def tell_of_crash(flow: Any, flow_run: FlowRun, state: State[Any]) -> None:
    """Tell of a run that was killed and could not tell so itself; the schedule or worker calls it.

    Who has started one by hand sees it end.
    """
    if flow_run.deployment_id:
        workspace = Workspace(Path(flow_run.parameters["root"]))
        webhook = load_settings(workspace.root / "params.yaml").retrain.webhook
        notify(webhook, workspace, "failed", str(state.message))


@flow(name="retrain", on_crashed=[tell_of_crash])
def retrain(root: str = ".") -> Retrained:
    """Bring the pipeline in `root` up to date, record it, and let its student through the gate.

    Raises PipelineError for what a user can mend: before the first stage when MLflow does not
    answer or another retraining runs here, later with the failed stage's own message.
    """
    workspace = Workspace(Path(root).resolve())
    webhook = None
    try:
        settings = load_settings(workspace.root / "params.yaml")
        webhook = settings.retrain.webhook
        return _retrain(workspace, settings)
    except Exception as error:
        notify(webhook, workspace, "failed", str(error))
        raise


def _retrain(workspace: Workspace, settings: Settings) -> Retrained:
    with workspace.exclusive():
        refresh_graph(workspace.root, settings)
        tracking = open_tracking(workspace.root, settings.record)
        note = workspace.root / "logs" / "live-run"
        live = LiveRun(tracking, str(runtime.flow_run.id), note)
        with clear_errors(tracking):
            live.close_killed()
        try:
            outcomes = _run_stages(workspace, live, settings.retrain)
            with clear_errors(tracking):
                return _conclude(workspace, settings, tracking, live, outcomes)
        except BaseException:
            with suppress(Exception):  # what went wrong before matters more
                live.fail()
            raise


def _conclude(
    workspace: Workspace,
    settings: Settings,
    tracking: Tracking,
    live: LiveRun,
    outcomes: dict[str, Outcome],
) -> Retrained:
    """Record what was made, register it, decide on it and show it."""
    recorded = _step(record)(workspace, settings, tracking, live.flow_run_id)
    live.drop()
    version: ModelVersion = _step(register)(workspace, settings, tracking, recorded.run_id)
    verdict = _promote(workspace, settings, tracking, version)
    announce(settings.retrain.webhook, workspace, tracking, version)
    _show(workspace.root, markdown_table(load_metrics(workspace.root, settings)), verdict)
    published = _publish(workspace, settings)
    for words in published.words:
        get_run_logger().info("%s", words)
    if published.is_complete:
        as_asked = settings.publish.model_dump_json()
        tracking.client.set_tag(run_of(version), PUBLISHED_TAG, as_asked)
    champion = aliases(tracking, version.name).get(CHAMPION)
    return Retrained(outcomes, recorded, str(version.version), verdict, champion)


def _promote(
    workspace: Workspace, settings: Settings, tracking: Tracking, version: ModelVersion
) -> Verdict:
    """Take the gate's decision, for which the champion may have to be measured again."""
    limit = settings.retrain.stage_timeout_minutes * SECONDS_PER_MINUTE
    try:
        verdict: Verdict = _step(promote).with_options(timeout_seconds=limit)(
            workspace, settings, tracking, version
        )
    except TimeoutError as error:
        raise _took_too_long("promote") from error
    return verdict


def _publish(workspace: Workspace, settings: Settings) -> Published:
    """Publish as a task that is tried again: what it needs is elsewhere, and may be away."""

    @task(name="publish", task_run_name="publish", cache_policy=NO_CACHE)
    def step() -> Published:
        return publish(workspace, settings.publish, _RunLog(terminal.get()))

    try:
        published = step.with_options(**_limits(settings.retrain, _is_no_mistake))()
    except TimeoutError as error:
        raise _took_too_long("publish") from error
    return published


def _run_stages(
    workspace: Workspace, live: LiveRun, settings: RetrainSettings
) -> dict[str, Outcome]:
    """Run each stage as a task; DVC is asked again only once something upstream may have changed.

    Asking takes a second, so one question covers all stages until the first one runs.
    """
    with ThreadPoolExecutor() as pool:
        stages, changed = pool.submit(workspace.stages), pool.submit(workspace.stale)
        stale = changed.result()
    outcomes: dict[str, Outcome] = {}
    for stage in stages.result():
        asks_dvc = stage in stale or set(outcomes.values()) - {Outcome.UNCHANGED} != set()
        run: Any = run_stage.with_options(
            name=stage, task_run_name=stage, **_limits(settings, _may_pass_next_time)
        )
        try:
            outcomes[stage] = Outcome(run(workspace, stage, live, asks_dvc).name)
        except TimeoutError as error:
            raise _took_too_long(f"stage {stage}") from error
    return outcomes


def _limits(settings: RetrainSettings, is_worth_it: Any) -> dict[str, Any]:
    """Return the options of a task that may take long, or fail and pass the next time."""
    return {
        "timeout_seconds": settings.stage_timeout_minutes * SECONDS_PER_MINUTE,
        "retries": settings.stage_retries,
        "retry_delay_seconds": settings.retry_delay_seconds,
        "retry_condition_fn": is_worth_it,
    }


def _took_too_long(what: str) -> PipelineError:
    return PipelineError(
        f"{what} took longer than retrain.stage_timeout_minutes in params.yaml allows, and was "
        "ended"
    )


def _is_no_mistake(_task: Any, _task_run: Any, state: State[Any]) -> bool:
    """Whether publishing failed for another reason than a setting or the time limit."""
    return not isinstance(state.result(raise_on_failure=False), ConfigError | TimeoutError)


def _may_pass_next_time(_task: Any, _task_run: Any, state: State[Any]) -> bool:
    """Whether a failed stage is worth another try."""
    return isinstance(state.result(raise_on_failure=False), TransientStageError)


@task(cache_policy=NO_CACHE)
def run_stage(workspace: Workspace, stage: str, live: LiveRun, asks_dvc: bool) -> Any:
    """Return a completed state with the name of the stage's Outcome."""
    screen = terminal.get()
    if not asks_dvc:
        return Completed(name=Outcome.UNCHANGED.value)
    if screen:
        screen.begin(stage)
    logs = workspace.root / "logs" / stage
    with live.follow(stage, logs / "curve.jsonl"):
        try:
            outcome = workspace.reproduce(stage, _RunLog(screen))
        except TransientStageError:
            if screen:
                screen.end("failed")
            raise
    if outcome is Outcome.RESTORED:  # what an earlier run took says nothing about these files
        (logs / "cost.json").unlink(missing_ok=True)
    if screen:
        screen.end(outcome.value.lower())
    return Completed(name=outcome.value)


def _step(function: Any) -> Any:
    """Return a function of this package as a task of its own name."""
    name = function.__name__
    return task(function, name=name, task_run_name=name, cache_policy=NO_CACHE)


class _RunLog:
    """Sends a stage's lines to Prefect's log of its task run, and everything to the terminal."""

    def __init__(self, screen: Terminal | None) -> None:
        self._log = get_run_logger()
        self._screen = screen

    def line(self, text: str) -> None:
        if text.strip():
            self._log.info("%s", text)
        if self._screen:
            self._screen.line(text)

    def progress(self, text: str) -> None:
        if self._screen:
            self._screen.progress(text)


def _show(root: Path, table: str, verdict: Verdict) -> None:
    word = "promoted" if verdict.passed else "not promoted"
    reasons = "\n".join(f"- {reason}" for reason in verdict.reasons)
    create_markdown_artifact(
        key="results", markdown=f"{table}\n\nThe student was **{word}**:\n\n{reasons}\n"
    )
    diagram = markdown_image(root / "data" / "report" / "reliability.png", "reliability diagram")
    create_markdown_artifact(key="reliability", markdown=diagram)
