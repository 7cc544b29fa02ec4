"""Podman, the images that infra/ names, and the services of docker-compose.yaml.

No image registry is needed: the image of Python that infra/Dockerfile begins with is made from
Debian's packages, which have the same Python, and those of other people's servers from
tests/images/. An image that is there already is taken as it is.
"""

import ast
import base64
import json
import os
import secrets
import shutil
import subprocess
import sys
import urllib.request
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import TopologicalSorter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ruamel.yaml import YAML

from tests.servers import wait_for
from tests.tiny import REPOSITORY

COMPOSE = REPOSITORY / "infra/docker-compose.yaml"
SERVICES = YAML(typ="safe").load(COMPOSE)["services"]
PYTHON = "docker.io/library/python:3.11-slim-bookworm"
OURS = "localhost/firstkd:cpu"
MACHINE = "localhost/firstkd-systemd:cpu"
STAND_INS = {SERVICES["postgres"]["image"]: "postgres", SERVICES["s3"]["image"]: "s3"}


@dataclass
class Podman:
    """The container engine, asking for no more than this machine allows."""

    folder: Path

    def __call__(self, *arguments: str | Path, **options: Any) -> str:
        done = self.attempt(*arguments, **options)
        assert done.returncode == 0, (
            f"podman {arguments}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
        return done.stdout.strip()

    def attempt(self, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        command = ["podman", *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, env=self.environment, **options
        )

    @cached_property
    def environment(self) -> dict[str, str]:
        # Podman's defaults are more than some virtual machines may give
        ulimits = '["nofile=4096:4096", "nproc=4096:4096"]'
        # crun, Podman's own choice, needs the second version of control groups
        engine = '[engine]\nruntime = "runc"\n' if shutil.which("runc") else ""
        settings = self.folder / "containers.conf"
        settings.write_text(f"[containers]\ndefault_ulimits = {ulimits}\n{engine}")
        return {**os.environ, "CONTAINERS_CONF": str(settings)}

    def build(self, name: str, dockerfile: Path, *options: str) -> None:
        """Build an image with pip configured as it is on this machine; layers are kept."""
        self(
            *("build", "--layers", "--network", "host", "--tag", name, "--file", dockerfile),
            *self._pip_options,
            *options,
            REPOSITORY,
        )

    @cached_property
    def _pip_options(self) -> list[str]:
        listed = subprocess.run(
            [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True
        )
        wanted = ("index-url", "extra-index-url", "find-links", "cert")
        settings, options = {}, []
        for line in listed.stdout.splitlines():
            key, _, value = line.partition("=")
            if key.rpartition(".")[2] in wanted:
                settings[key.rpartition(".")[2]] = ast.literal_eval(value)
        for word in " ".join(settings.values()).split():
            # an index names its files relative to its own place
            path = Path(word.removeprefix("file://"))
            path = path.parent if word.startswith("file://") else path
            if path.is_absolute() and path.exists():
                options += ["--volume", f"{path}:{path}:ro"]
        file = self.folder / "pip.conf"
        lines = [f"{key} = {value}\n" for key, value in settings.items()]
        file.write_text("[global]\n" + "".join(lines))
        index = settings.get("index-url", "https://pypi.org/simple")
        return [
            *options,
            "--secret",
            f"id=pip.conf,src={file}",
            "--build-arg",
            f"PYTORCH_INDEX={index}",
        ]

    def make_images(self) -> None:
        if self.attempt("image", "exists", PYTHON).returncode:
            self._make_python()
        for name, stand_in in STAND_INS.items():
            if self.attempt("image", "exists", name).returncode:
                self.build(name, REPOSITORY / f"tests/images/{stand_in}.Dockerfile")
        self.build(OURS, REPOSITORY / "infra/Dockerfile")
        self.build(MACHINE, REPOSITORY / "tests/images/systemd.Dockerfile")

    def _make_python(self) -> None:
        packages = "--include=python3,python3-venv,ca-certificates"
        with TemporaryDirectory() as name:
            root = Path(name, "root")
            run = ["debootstrap", "--variant=minbase", packages, "bookworm", str(root)]
            subprocess.run(run, check=True, stdout=subprocess.DEVNULL)
            # where the original has its Python, and without Debian's guard against pip
            run = ["chroot", str(root), "python3", "-m", "venv", "/usr/local"]
            subprocess.run(run, check=True)
            archive = Path(name, "root.tar")
            subprocess.run(["tar", "-C", str(root), "-cf", str(archive), "."], check=True)
            self("import", "--change", "CMD=python3", archive, PYTHON)


@dataclass
class Composed:
    """The services of docker-compose.yaml, with passwords that nobody else knows."""

    podman: Podman
    workspace: Path
    passwords: dict[str, str] = field(default_factory=dict)

    def compose(self, *arguments: str) -> str:
        if not self.passwords:
            for name in ("POSTGRES", "MLFLOW", "PREFECT"):
                self.passwords[f"{name}_PASSWORD"] = secrets.token_hex(12)
            for name in ("S3_SECRET_KEY", "MLFLOW_SECRET_KEY"):
                self.passwords[name] = secrets.token_hex(12)
        file = self.podman.folder / "env"
        values = {**self.passwords, "WORKSPACE": str(self.workspace), "VARIANT": "cpu"}
        file.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
        command = [sys.executable, "-m", "podman_compose", "--file", str(COMPOSE)]
        command += ["--env-file", str(file), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=self.podman.environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self) -> None:
        """Start the services in the order of `depends_on`, which Podman 4 cannot keep by itself."""
        needs = {name: set(service.get("depends_on", {})) for name, service in SERVICES.items()}
        for name in TopologicalSorter(needs).static_order():
            for other, needed in SERVICES[name].get("depends_on", {}).items():
                self._wait(other, needed["condition"])
            self.compose("up", "--detach", "--no-deps", "--no-build", name)

    def _wait(self, service: str, condition: str) -> None:
        if condition == "service_healthy":
            wait_for(lambda: self.is_healthy(service), 600)
        elif condition == "service_completed_successfully":
            assert self.podman("wait", self.container(service)) == "0"

    def is_healthy(self, service: str) -> bool:
        """Check it as the file says; Podman itself would need systemd to do so regularly."""
        return self.podman.attempt("healthcheck", "run", self.container(service)).returncode == 0

    @property
    def client(self) -> dict[str, str]:
        """What a pod's secret holds, according to infra/README.md: the worker's logins."""
        asked = ("inspect", "--format", "{{json .Config.Env}}", self.container("worker"))
        pairs = (pair.partition("=") for pair in json.loads(self.podman(*asked)))
        wanted = ("MLFLOW_TRACKING_", "PREFECT_API_", "AWS_")
        return {name: value for name, _, value in pairs if name.startswith(wanted)}

    def container(self, service: str) -> str:
        return f"firstkd_{service}_1"

    def inside(self, service: str, *command: str) -> str:
        return self.podman("exec", self.container(service), *command)

    def log(self, service: str) -> str:
        done = self.podman.attempt("logs", self.container(service))
        return done.stdout + done.stderr

    def ask_prefect(self, path: str, body: dict[str, Any] | None = None) -> Any:
        login = base64.b64encode(f"firstkd:{self.passwords['PREFECT_PASSWORD']}".encode())
        request = urllib.request.Request(
            f"http://127.0.0.1:4200/api/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Basic {login.decode()}",
                "Content-Type": "application/json",
            },
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)
