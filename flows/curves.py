"""Training curves: read from the files that stages write, and mirrored live while one trains."""

import json
import logging
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow.entities import Metric
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from firstkd.files import atomic_file
from flows.tracking import Tracking

log = logging.getLogger(__name__)

POLL_SECONDS = 2.0
BATCH = 1000
"""Metrics per call: MLflow's limit."""


def curve_metrics(lines: Iterable[str]) -> list[Metric]:
    """Return one metric per number and line of a training curve; each line names its `step`."""
    now = int(time.time() * 1000)
    metrics = []
    for line in lines:
        point = json.loads(line)
        step = int(point.pop("step"))
        metrics += [
            Metric(name, float(value), now, step)
            for name, value in point.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        ]
    return metrics


def log_metrics(tracking: Tracking, run_id: str, metrics: list[Metric]) -> None:
    for start in range(0, len(metrics), BATCH):
        tracking.client.log_batch(run_id, metrics=metrics[start : start + BATCH])


class LiveRun:
    """A run, with a child per training stage, to look at while a retraining is under way.

    It is a view: `record` writes the lasting runs from files, and then this one is dropped. After
    a failure it stays, marked as failed, since its curves may tell why. `note` is a file that says
    whose view is open, so that the one of a retraining that was killed is closed by the next.
    """

    def __init__(self, tracking: Tracking, flow_run_id: str, note: Path) -> None:
        self._tracking = tracking
        self._note = note
        self.flow_run_id = flow_run_id
        self._tags = {"live": "true", "prefect_flow_run_id": flow_run_id}
        self._runs: dict[str, str] = {}

    @contextmanager
    def follow(self, stage: str, curve: Path) -> Iterator[None]:
        """Mirror what is appended to `curve` while the body runs; a trouble here is only logged."""
        follower = _Follower(self._tracking, lambda: self._run_of(stage), curve)
        follower.start()
        try:
            yield
        finally:
            follower.finish()

    def close_killed(self) -> None:
        """Mark as killed what a retraining of this workspace left open when it was killed."""
        if not self._note.exists():
            return
        killed = f"tags.live = 'true' and tags.prefect_flow_run_id = '{self._note.read_text()}'"
        client, experiment = self._tracking.client, self._tracking.experiment_id
        for run in client.search_runs([experiment], f"{killed} and attributes.status = 'RUNNING'"):
            client.set_terminated(run.info.run_id, "KILLED")
        self._note.unlink()

    def drop(self) -> None:
        while self._runs:
            self._tracking.client.delete_run(self._runs.popitem()[1])
        self._note.unlink(missing_ok=True)

    def fail(self) -> None:
        for run_id in self._runs.values():
            self._tracking.client.set_terminated(run_id, "FAILED")
        self._note.unlink(missing_ok=True)

    def _run_of(self, stage: str) -> str:
        if not self._runs:
            with atomic_file(self._note) as file:
                file.write_text(self.flow_run_id)
            self._runs[""] = self._create("retrain (live)", {})
        if stage not in self._runs:
            self._runs[stage] = self._create(stage, {MLFLOW_PARENT_RUN_ID: self._runs[""]})
        return self._runs[stage]

    def _create(self, name: str, tags: dict[str, Any]) -> str:
        run = self._tracking.client.create_run(
            self._tracking.experiment_id, run_name=name, tags={**self._tags, **tags}
        )
        return str(run.info.run_id)


class _Follower(threading.Thread):
    def __init__(self, tracking: Tracking, run_of_stage: Any, curve: Path) -> None:
        super().__init__(daemon=True, name=f"follow {curve}")
        self._tracking = tracking
        self._run_of_stage = run_of_stage
        self._curve = curve
        self._offset = curve.stat().st_size if curve.exists() else 0  # an older training's
        self._done = threading.Event()

    def run(self) -> None:
        try:
            while not self._done.wait(POLL_SECONDS):
                self._mirror()
            self._mirror()
        except Exception as error:
            log.warning("the live curve %s is not shown any further: %s", self._curve, error)

    def finish(self) -> None:
        self._done.set()
        self.join(timeout=30)  # a hanging server must not hold the pipeline up

    def _mirror(self) -> None:
        if not self._curve.exists():
            return
        if self._curve.stat().st_size < self._offset:  # begun anew
            self._offset = 0
        with self._curve.open("rb") as file:
            file.seek(self._offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        if whole:
            lines = whole.decode().splitlines()
            log_metrics(self._tracking, self._run_of_stage(), curve_metrics(lines))
