"""The report page with what a run cost and where it was recorded.

Times and run ids differ from run to run, so they must not be in data/report, which DVC tracks:
the same parameters give the same bytes there. The page with them is made of that one, and lies in
logs/, which nothing tracks.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy.engine import make_url

from firstkd.errors import ArtifactError
from firstkd.files import atomic_file, read_json
from firstkd.settings import Settings
from flows.processes import OutputSink
from flows.workspace import Workspace
from tasks.page import templates_of

PLACE = "<!-- firstkd report: cost and lineage -->"
LINK_PLACE = "<!-- firstkd report: link to them -->"
"""In the report stage's page; tasks/templates/report.html."""


def build_page(workspace: Workspace, settings: Settings, sink: OutputSink) -> Path:
    """Bring the report stage, and no other, up to date; return the page with cost and lineage."""
    with workspace.exclusive():
        workspace.reproduce("report", sink)
    page = (workspace.root / "data/report/index.html").read_text(encoding="utf-8")
    if PLACE not in page:
        raise ArtifactError("data/report/index.html is of another version; run `dvc repro report`")
    section = (
        templates_of("flows")
        .get_template("run.html")
        .render(costs=costs(workspace), lineage=lineage(workspace, settings))
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


def lineage(workspace: Workspace, settings: Settings) -> dict[str, str]:
    from flows.record import LOCK_TAG
    from flows.tracking import open_tracking

    git, digest = workspace.git(), workspace.lock_digest()
    server = open_tracking(workspace.root, settings.record)
    runs = server.client.search_runs([server.experiment_id], f"tags.{LOCK_TAG} = '{digest}'")
    commit = git.commit or "none"
    ids = [run.info.run_id for run in runs]
    return {
        "git commit": f"{commit} (with changes that are not committed)" if git.dirty else commit,
        "SHA-256 of dvc.lock": digest,
        "MLflow run": ", ".join(run_links(server.uri, server.experiment_id, ids))
        or "not recorded yet",
        "MLflow": make_url(server.uri).render_as_string(),  # hides the password
    }


def run_links(uri: str, experiment: str, run_ids: Sequence[str]) -> list[str]:
    """Return where an MLflow server shows each run, without a password; of a database, the ids."""
    address = urlsplit(uri)
    if address.scheme not in ("http", "https"):
        return list(run_ids)
    server = address._replace(netloc=address.netloc.rpartition("@")[2]).geturl().rstrip("/")
    return [f"{server}/#/experiments/{experiment}/runs/{run_id}" for run_id in run_ids]
