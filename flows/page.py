"""The report page with what a run cost and where it was recorded.

Times and run ids differ from run to run, so they must not be in data/report, which DVC tracks:
the same parameters give the same bytes there. The page with them is made of that one, and lies in
logs/, which nothing tracks.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from firstkd.errors import ArtifactError
from firstkd.files import atomic_file, read_json
from firstkd.processes import OutputSink
from flows.git import git_state
from flows.project import Project
from flows.record import recorded_runs
from flows.workspace import Workspace
from tasks.page import templates_of

PLACE = "<!-- firstkd report: cost and lineage -->"
LINK_PLACE = "<!-- firstkd report: link to them -->"
"""In the report stage's page; tasks/templates/report.html."""


def build_page(project: Project, sink: OutputSink) -> Path:
    """Bring the report stage, and no other, up to date; return the page with cost and lineage."""
    workspace = project.workspace
    with workspace.exclusive():
        workspace.reproduce("report", sink)
    page = (workspace.root / "data/report/index.html").read_text(encoding="utf-8")
    if PLACE not in page:
        raise ArtifactError("data/report/index.html is of another version; run `dvc repro report`")
    section = (
        templates_of("flows")
        .get_template("run.html")
        .render(costs=costs(workspace), lineage=lineage(project))
    )
    path = workspace.root / "logs/report/index.html"
    with atomic_file(path) as temporary:
        whole = page.replace(PLACE, section).replace(LINK_PLACE, '<a href="#run">Cost</a>')
        temporary.write_text(whole, encoding="utf-8")
    return path


def costs(workspace: Workspace) -> dict[str, Any]:
    """Return what each present stage cost, where that is known."""
    files = {stage: workspace.root / "logs" / stage / "cost.json" for stage in workspace.stages()}
    return {stage: read_json(file) for stage, file in files.items() if file.exists()}


def lineage(project: Project) -> dict[str, str]:
    git, digest = git_state(project.root), project.workspace.lock_digest()
    server = project.tracking
    ids = recorded_runs(server, digest)
    return {
        "git commit": (git.commit or "none") + (f" ({git.problem})" if git.problem else ""),
        "SHA-256 of dvc.lock": digest,
        "MLflow run": ", ".join(run_links(server.uri, server.experiment_id, ids))
        or "not recorded yet",
        "MLflow": server.shown,
    }


def run_links(uri: str, experiment: str, run_ids: Sequence[str]) -> list[str]:
    """Return where an MLflow server shows each run, without a password; of a database, the ids."""
    address = urlsplit(uri)
    if address.scheme not in ("http", "https"):
        return list(run_ids)
    server = address._replace(netloc=address.netloc.rpartition("@")[2]).geturl().rstrip("/")
    return [f"{server}/#/experiments/{experiment}/runs/{run_id}" for run_id in run_ids]
