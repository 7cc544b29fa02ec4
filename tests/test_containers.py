"""docker-compose.yaml brought up, and a pod of the Kubernetes work pool: `make test-infra`."""

import base64
import json
import os
import re
import signal
import socket
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.containers import SERVICES, Composed, Podman
from tests.servers import status_of, wait_for
from tests.tiny import REPOSITORY
from tests.workspaces import write_workspace

pytestmark = [pytest.mark.infra, pytest.mark.timeout(7200)]

NAME = "firstkd-student"
NETWORK = "firstkd_default"
POD_TEMPLATE = REPOSITORY / "infra/kubernetes-work-pool.json"
PREFECT = ("prefect", "--no-prompt")
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
HOUR = 3600.0


@pytest.fixture(scope="module")
def composed(podman: Podman) -> Iterator[Composed]:
    """All services of docker-compose.yaml, on the ports that it publishes."""
    for service in SERVICES.values():
        for port in service.get("ports", []):
            with socket.socket() as free:
                free.bind(("127.0.0.1", int(port.split(":")[1])))
    with tempfile.TemporaryDirectory(prefix="firstkd-workspace-") as name:
        write_workspace(Path(name), "s3://firstkd/dvc")
        found = Composed(podman, Path(name))
        try:
            found.start()
            yield found
        finally:
            found.compose("down", "--volumes")


def retrain(composed: Composed) -> str:
    """Order a retraining, and return the id of its flow run."""
    said = composed.inside(
        "worker", "prefect", "--no-prompt", "deployment", "run", "retrain/weekly"
    )
    return re.search(r"UUID: (\S+)", said).group(1)  # type: ignore[union-attr]


def state(composed: Composed, run: str) -> str:
    return str(composed.ask_prefect(f"flow_runs/{run}")["state_type"])


def wait_until_ended(composed: Composed, run: str) -> None:
    wait_for(lambda: state(composed, run) in ENDED, HOUR)
    assert state(composed, run) == "COMPLETED", composed.log("worker")[-5000:]


def kill(composed: Composed, service: str) -> None:
    """End a container without a warning, and wait until Podman has started it again."""
    asked = ("inspect", "--format", "{{.State.Pid}}", composed.container(service))
    before = int(composed.podman(*asked))
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: int(composed.podman(*asked)) not in {0, before}, 120)


def champion(composed: Composed, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", composed.passwords["MLFLOW_PASSWORD"])
    aliases = MlflowClient("http://127.0.0.1:5000").get_registered_model(NAME).aliases
    return str(aliases["champion"])


def test_a_retraining_goes_on_after_its_worker_was_killed(
    composed: Composed, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_for(lambda: "started!" in composed.log("worker"), 600)
    retrain(composed)
    wait_for(lambda: "python -m tasks.model teacher" in composed.log("worker"), HOUR)
    kill(composed, "worker")
    wait_for(lambda: composed.log("worker").count("started!") == 2, 600)
    wait_until_ended(composed, retrain(composed))
    told = composed.ask_prefect("logs/filter", {})
    # what the killed one had finished is not done again
    assert sum("python -m tasks.prepare" in line["message"] for line in told) == 1
    assert champion(composed, monkeypatch) == "1"
    assert list((composed.workspace / "data/report").iterdir())


def test_a_killed_database_comes_back(composed: Composed, monkeypatch: pytest.MonkeyPatch) -> None:
    kill(composed, "postgres")
    wait_for(lambda: composed.is_healthy("postgres"), 120)
    assert champion(composed, monkeypatch) == "1"


def test_what_was_taken_down_comes_up_with_what_it_knew(
    composed: Composed, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed.compose("down")
    composed.start()
    assert champion(composed, monkeypatch) == "1"
    assert composed.ask_prefect("deployments/name/retrain/weekly")["work_pool_name"] == "firstkd"


def test_nobody_gets_in_without_a_login_and_pages_are_there(composed: Composed) -> None:
    assert status_of("http://127.0.0.1:5000/api/2.0/mlflow/registered-models/search") == 401
    assert status_of("http://127.0.0.1:4200/api/admin/version") == 401
    assert status_of("http://127.0.0.1:7070/firstkd") in {400, 401, 403}
    with urllib.request.urlopen("http://127.0.0.1:4200/", timeout=60) as page:
        assert b"<title>Prefect" in page.read()


def test_no_password_is_in_a_log(composed: Composed) -> None:
    for service in SERVICES:
        assert not any(word in composed.log(service) for word in composed.passwords.values())


def filled_in(template: Any, values: dict[str, Any]) -> Any:
    """Put values into the places of a work pool's template, as its worker does."""
    if isinstance(template, dict):
        filled = {key: filled_in(value, values) for key, value in template.items()}
        return {key: value for key, value in filled.items() if value is not None}
    if isinstance(template, list):
        return [filled_in(value, values) for value in template]
    place = re.fullmatch(r"\{\{ (\w+) \}\}", str(template))
    return values[place[1]] if place else template


def job_of(run: str) -> Any:
    """Return the Kubernetes job of a flow run, with what the worker itself adds to it."""
    pool = json.loads(POD_TEMPLATE.read_text())
    values = {name: of.get("default") for name, of in pool["variables"]["properties"].items()}
    environment = {**values["env"], "PREFECT__FLOW_RUN_ID": run}
    values["env"] = [{"name": name, "value": value} for name, value in environment.items()]
    values |= {"name": "retrain", "command": [*PREFECT, "flow-run", "execute"]}
    job = filled_in(pool["job_configuration"]["job_manifest"], values)
    job["metadata"]["generateName"] = "retrain-"
    return job


def test_the_job_of_the_work_pool_is_one_that_kubernetes_accepts() -> None:
    kubernetes = pytest.importorskip("kubernetes_validate")
    kubernetes.validate(job_of("a run"), kubernetes.latest_version(), strict=True)


def test_a_pod_of_the_work_pool_retrains(composed: Composed, podman: Podman) -> None:
    pool = ["--type", "kubernetes", "--base-job-template", "infra/kubernetes-work-pool.json"]
    composed.inside("worker", *PREFECT, "work-pool", "create", "pods", *pool)
    composed.inside("worker", *PREFECT, "deploy", "--name", "weekly", "--pool", "pods")
    run = retrain(composed)
    job = job_of(run)
    spec = job["spec"]["template"]["spec"]
    volumes = [{"name": "workspace", "hostPath": {"path": str(composed.workspace)}}]
    assert [volume["name"] for volume in spec["volumes"]] == ["workspace"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "retrain", "labels": {"app": "retrain"}},
        "spec": {**spec, "volumes": volumes},
    }
    # not in the file: Podman before 4.4 cannot read the secrets that it makes of one
    logins = podman.folder / "logins.json"
    encoded = {k: base64.b64encode(v.encode()).decode() for k, v in composed.client.items()}
    logins.write_text(json.dumps(encoded))
    file = podman.folder / "pod.yaml"
    file.write_text(json.dumps(pod))
    podman("secret", "create", "firstkd", logins)
    try:
        podman("kube", "play", "--network", NETWORK, file)
        wait_until_ended(composed, run)
    finally:
        podman.attempt("kube", "down", file)
        podman("secret", "rm", "firstkd")
