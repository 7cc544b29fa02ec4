"""The units of infra/systemd/, run by systemd in a container: `make test-infra`."""

import re
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.containers import MACHINE, Podman
from tests.servers import wait_for
from tests.tiny import REPOSITORY
from tests.workspaces import write_workspace

pytestmark = [pytest.mark.infra, pytest.mark.timeout(7200)]

UNITS = sorted(path.stem for path in REPOSITORY.glob("infra/systemd/*.service"))
ADDRESSES = {
    "firstkd-mlflow": "http://127.0.0.1:5000/health",
    "firstkd-prefect": "http://127.0.0.1:4200/api/health",
}
HOUR = 3600.0


@dataclass
class Machine:
    """A container that systemd runs, with the project in /srv/firstkd."""

    podman: Podman
    name: str
    client: dict[str, str]

    def run(self, *command: str) -> str:
        return self.podman("exec", self.name, *command)

    def as_client(self, *command: str) -> str:
        login = [word for pair in self.client.items() for word in ("--env", "=".join(pair))]
        return self.podman("exec", "--user", "firstkd", *login, self.name, *command)

    def journal(self, unit: str) -> str:
        """What a unit has said since the machine was switched on: Podman keeps no more."""
        return self.run("journalctl", "--no-pager", "--boot", "--output", "cat", "--unit", unit)

    def answers(self, unit: str) -> bool:
        code = f"import urllib.request as r; r.urlopen('{ADDRESSES[unit]}', timeout=10)"
        return self.podman.attempt("exec", self.name, "python", "-c", code).returncode == 0

    def main_process(self, unit: str) -> str:
        return self.run("systemctl", "show", "--property", "MainPID", "--value", unit)

    def processes(self, unit: str) -> list[str]:
        """Return the groups of all of a unit's processes, as `/proc/NUMBER/cgroup:GROUP`."""
        search = f"grep -s {unit}.service /proc/[0-9]*/cgroup || true"
        return self.run("sh", "-c", search).splitlines()


@pytest.fixture(scope="module")
def machine(podman: Podman) -> Iterator[Machine]:
    with tempfile.TemporaryDirectory(prefix="firstkd-machine-") as folder:
        project, settings = Path(folder, "project"), Path(folder, "settings")
        Path(folder).chmod(0o755)
        project.mkdir()
        settings.mkdir(mode=0o700)
        write_workspace(project, "/home/firstkd/dvc")
        (project / ".venv").symlink_to("/usr/local")
        client = write_settings(settings, project)
        name = f"firstkd-systemd-{secrets.token_hex(4)}"
        podman(
            *("run", "--detach", "--name", name, "--systemd=always"),
            *("--volume", f"{project}:/srv/firstkd", "--volume", f"{settings}:/etc/firstkd:ro"),
            MACHINE,
        )
        try:
            found = Machine(podman, name, client)
            wait_for(lambda: podman.attempt("exec", name, "systemctl").returncode == 0, 120)
            found.run("systemctl", "enable", "--now", *UNITS)
            yield found
        finally:
            podman("rm", "--force", "--time", "10", name)


def write_settings(folder: Path, project: Path) -> dict[str, str]:
    """Write the files of /etc/firstkd; return the variables of whoever uses the servers."""
    mlflow, prefect = secrets.token_hex(12), f"firstkd:{secrets.token_hex(12)}"
    shipped = (REPOSITORY / "infra/mlflow-auth.ini").read_text()
    database = "database_uri = sqlite:////home/firstkd/auth.db"
    (project / "auth.ini").write_text(re.sub("^database_uri.*$", database, shipped, flags=re.M))
    client = {
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000",
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_PASSWORD": mlflow,
        "PREFECT_API_URL": "http://127.0.0.1:4200/api",
        "PREFECT_API_AUTH_STRING": prefect,
    }
    files = {
        "mlflow.env": {
            "MLFLOW_AUTH_CONFIG_PATH": "/srv/firstkd/auth.ini",
            "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
            "MLFLOW_AUTH_ADMIN_PASSWORD": mlflow,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(12),
            "BACKEND_STORE_URI": "sqlite:////home/firstkd/mlflow.db",
            "ARTIFACTS_DESTINATION": "/home/firstkd/artifacts",
        },
        "prefect.env": {"PREFECT_SERVER_API_AUTH_STRING": prefect},
        "client.env": client,
    }
    for name, variables in files.items():
        (folder / name).write_text("".join(f"{key}={value}\n" for key, value in variables.items()))
    return client


def test_a_killed_server_is_started_again(machine: Machine) -> None:
    for unit in ADDRESSES:
        wait_for(lambda unit=unit: machine.answers(unit), 600)  # type: ignore[misc]
        before = machine.main_process(unit)
        machine.run("systemctl", "kill", "--signal=KILL", unit)
        wait_for(lambda unit=unit: machine.answers(unit), 600)  # type: ignore[misc]
        assert machine.main_process(unit) not in {"0", before}


def test_a_retraining_goes_on_after_the_machine_was_switched_off(machine: Machine) -> None:
    retrain(machine)
    wait_for(lambda: "python -m tasks.model teacher" in machine.journal("firstkd-schedule"), HOUR)
    assert machine.journal("firstkd-schedule").count("python -m tasks.prepare") == 1
    machine.podman("kill", "--signal", "KILL", machine.name)
    machine.podman("start", machine.name)
    for unit in ADDRESSES:
        wait_for(lambda unit=unit: machine.answers(unit), 600)  # type: ignore[misc]
    retrain(machine)
    ended = "Finished in state Completed"
    wait_for(lambda: f"'publish' - {ended}" in machine.journal("firstkd-schedule"), HOUR)
    assert "python -m tasks.prepare" not in machine.journal("firstkd-schedule")


def retrain(machine: Machine) -> None:
    """Order a retraining from the schedule, which says under which name, once it is there."""
    ready = r"prefect deployment run '(.*)'"

    def name() -> list[str]:
        return re.findall(ready, machine.journal("firstkd-schedule"))

    found = wait_for(name, 600)
    assert isinstance(found, list)
    machine.as_client("prefect", "--no-prompt", "deployment", "run", found[-1])


def test_the_schedule_stops_in_time(machine: Machine) -> None:
    """By its processes: with control groups of version 1, systemd in a container is not told that
    they have ended, and waits until the unit's time is over."""
    assert machine.processes("firstkd-schedule")
    machine.run("systemctl", "stop", "--no-block", "firstkd-schedule")
    wait_for(lambda: not machine.processes("firstkd-schedule"), 60)
    ended = ("systemctl", "show", "--property", "ExecMainCode,ExecMainStatus", "--value")
    assert machine.run(*ended, "firstkd-schedule").split() == ["1", "0"], "it was killed"


def test_no_password_is_in_the_journal(machine: Machine) -> None:
    journal = machine.run("journalctl", "--no-pager")
    for name in ("MLFLOW_TRACKING_PASSWORD", "PREFECT_API_AUTH_STRING"):
        assert machine.client[name].rpartition(":")[2] not in journal
