"""What can be said of infra/ without a container engine: names, addresses and secrets agree."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.tiny import REPOSITORY

INFRA = REPOSITORY / "infra"
COMPOSE = YAML(typ="safe").load(INFRA / "docker-compose.yaml")
SERVICES = COMPOSE["services"]


def example() -> dict[str, str]:
    lines = (INFRA / ".env.example").read_text().splitlines()
    pairs = (line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return {name: value for name, value in pairs}


def test_every_variable_is_in_the_example_and_no_secret_has_a_value() -> None:
    used = re.findall(r"\$\{(\w+)", (INFRA / "docker-compose.yaml").read_text())
    assert set(used) == set(example())
    assert {name for name, value in example().items() if value} == {"VARIANT"}
    required = re.findall(r"\$\{(\w+):\?", (INFRA / "docker-compose.yaml").read_text())
    assert set(required) == set(example()) - {"VARIANT", "FIRSTKD_WEBHOOK"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_and_published_on_localhost_alone(name: str) -> None:
    service = SERVICES[name]
    assert ":" in service["image"] and not service["image"].endswith(":latest")
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:")
    for other in service.get("depends_on", {}):
        assert other in SERVICES
    for volume in service.get("volumes", []):
        source = volume.rpartition(":/")[0]
        if source.startswith("."):
            assert (INFRA / source).exists()
        elif not source.startswith("$"):
            assert source in COMPOSE["volumes"]


def test_the_gpus_go_to_a_service_that_there_is() -> None:
    more = YAML(typ="safe").load(INFRA / "docker-compose.gpu.yaml")["services"]
    assert set(more) == {"worker"} <= set(SERVICES)


def test_files_that_containers_run_exist() -> None:
    named = re.findall(r"infra/([\w.-]+)", (INFRA / "docker-compose.yaml").read_text())
    assert named
    for name in set(named):
        assert (INFRA / name).exists() or name == ".env", name


def test_the_kubernetes_template_is_complete() -> None:
    template = json.loads((INFRA / "kubernetes-work-pool.json").read_text())
    used = re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"]))
    assert set(used) == set(template["variables"]["properties"])


@pytest.mark.parametrize("script", sorted(INFRA.glob("*.sh")), ids=lambda path: path.name)
def test_shell_scripts_are_valid(script: Path) -> None:
    subprocess.run(["sh", "-n", script], check=True)


@pytest.mark.parametrize("unit", sorted(INFRA.glob("systemd/*.service")), ids=lambda p: p.name)
def test_a_unit_names_commands_that_exist(unit: Path) -> None:
    [command] = re.findall(r"^ExecStart=/srv/firstkd/.venv/bin/(\w+) ", unit.read_text(), re.M)
    assert command in {"firstkd", "mlflow", "prefect"}
    assert not re.search(r"PASSWORD=|AUTH_STRING=", unit.read_text())


def test_units_pass_systemds_own_check() -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd is not installed")
    units = sorted(INFRA.glob("systemd/*.service"))
    done = subprocess.run([analyze, "verify", *units], capture_output=True, text=True)
    # that /srv/firstkd is not on this machine is no mistake of theirs
    complaints = [line for line in done.stderr.splitlines() if "is not executable" not in line]
    assert not complaints


def test_whatever_stops_a_training_leaves_it_time_to_save() -> None:
    yaml = YAML(typ="safe")
    needed = yaml.load(REPOSITORY / "params.yaml")["retrain"]["stop_seconds"]
    graces = [each["stop_grace_period"] for each in SERVICES.values() if "stop_signal" in each]
    unit = (INFRA / "systemd/firstkd-schedule.service").read_text()
    graces += re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    manifest = json.loads((INFRA / "kubernetes-work-pool.json").read_text())
    job = manifest["job_configuration"]["job_manifest"]
    for pod in (job["spec"]["template"], yaml.load(INFRA / "kubernetes.yaml")["template"]):
        graces.append(str(pod["spec"]["terminationGracePeriodSeconds"]))
    assert len(graces) == 4 and all(int(grace.rstrip("s")) > needed for grace in graces)


def test_no_secret_of_dvc_is_copied_into_the_image() -> None:
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert {".dvc/config.local", "**/.env", ".git"} <= {*ignored}
