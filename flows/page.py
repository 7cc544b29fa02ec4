"""The report page with what a run cost and where it was recorded.

Times and run ids differ from run to run, so they must not be in data/report, which DVC tracks:
there, the same parameters give the same bytes. The page with them is built from that one and lies
in logs/, which nothing tracks.
"""

from pathlib import Path
from urllib.parse import urlsplit

from firstkd.errors import ArtifactError
from firstkd.files import atomic_file, read_json
from firstkd.git import git_state
from firstkd.processes import OutputSink
from flows.project import Project
from flows.record import recorded_runs
from tasks.page import templates_of

PLACE = "<!-- firstkd report: cost and lineage -->"
LINK_PLACE = "<!-- firstkd report: link to them -->"
"""Both are in the report stage's page, tasks/templates/report.html."""


def build_page(project: Project, sink: OutputSink) -> Path:
    """Bring the report stage, and no other, up to date; return the page with cost and lineage."""
    workspace = project.workspace
    with workspace.exclusive():
        workspace.reproduce("report", sink)
    page = (workspace.root / "data/report/index.html").read_text(encoding="utf-8")
    if PLACE not in page:
        raise ArtifactError(
            "data/report/index.html was built by another version of firstkd; run `dvc repro report`"
        )
    files = {stage: workspace.root / "logs" / stage / "cost.json" for stage in workspace.stages()}
    costs = {stage: read_json(file) for stage, file in files.items() if file.exists()}
    template = templates_of("flows").get_template("run.html")
    section = template.render(costs=costs, lineage=_lineage(project))
    path = workspace.root / "logs/report/index.html"
    with atomic_file(path) as temporary:
        whole = page.replace(PLACE, section).replace(LINK_PLACE, '<a href="#run">Cost</a>')
        temporary.write_text(whole, encoding="utf-8")
    return path


def _lineage(project: Project) -> dict[str, str]:
    git, digest, server = git_state(project.root), project.workspace.lock_digest(), project.tracking
    ids = recorded_runs(server, digest)
    runs = [run_link(server.uri, server.experiment_id, run_id) for run_id in ids]
    return {
        "git commit": (git.commit or "none") + (f" ({git.problem})" if git.problem else ""),
        "SHA-256 of dvc.lock": digest,
        "MLflow run": ", ".join(runs) or "not recorded yet",
        "MLflow": server.shown,
    }


def run_link(uri: str, experiment: str, run_id: str) -> str:
    """Return the link to a run on an MLflow server, without a password; for a database, the id."""
    address = urlsplit(uri)
    if address.scheme not in ("http", "https"):
        return run_id
    server = address._replace(netloc=address.netloc.rpartition("@")[2]).geturl().rstrip("/")
    return f"{server}/#/experiments/{experiment}/runs/{run_id}"
