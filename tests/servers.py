"""Real servers on this machine: PostgreSQL, an S3-compatible store, MLflow and Prefect with logins.

Every server is a process that a test may kill and start again, with the same data and address.
"""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

POSTGRES_USER = "firstkd"
BUCKET = "firstkd"
LEASES_IN_FILES = "prefect.server.concurrency.lease_storage.filesystem"
BIN = Path(sys.executable).parent
INFRA = Path(__file__).parents[1] / "infra"


def wait_for(condition: Callable[[], object], seconds: float = 120) -> object:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{condition} never came true"
        time.sleep(0.2)
    return found


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def status_of(url: str) -> int | None:
    """Return the HTTP status of a GET without any login, or None when nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def postgres_programs() -> Path | None:
    """Return the folder of PostgreSQL's own programs, which Debian keeps off the PATH."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


@dataclass
class Server:
    """A process with a log, in a session of its own."""

    command: list[str]
    environment: dict[str, str]
    log: Path
    is_up: Callable[[], bool]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        wait_for(self._try_to_start, 180)

    def _try_to_start(self) -> bool:
        """Start it again if it has ended, as after a crash of which it finds remains."""
        if self.process is None or self.process.poll() is not None:
            with self.log.open("a") as log:
                self.process = subprocess.Popen(
                    self.command,
                    cwd=self.log.parent,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            time.sleep(0.5)
        return self.is_up()

    def kill(self) -> None:
        """End it, and all that it has started, without a warning."""
        self._send(signal.SIGKILL)

    def stop(self) -> None:
        self._send(signal.SIGTERM)

    def _send(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, number)
            try:
                self.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


@dataclass
class Servers:
    """All of them, each with a password of its own that nobody else knows."""

    folder: Path
    passwords: dict[str, str] = field(default_factory=dict)
    running: dict[str, Server] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)
    postgres_home: Path | None = None
    """Outside `folder`, which only its owner may enter."""

    def start(self) -> None:
        for name in ("postgres", "mlflow", "prefect", "s3"):
            self.passwords[name] = secrets.token_hex(12)
        self._start_postgres()
        self._start_s3()
        self._start_mlflow()
        self._start_prefect()

    def stop(self) -> None:
        for server in reversed(self.running.values()):
            server.stop()
        if self.postgres_home:
            shutil.rmtree(self.postgres_home)

    @property
    def client(self) -> dict[str, str]:
        """Environment of whoever uses the servers."""
        return {
            "MLFLOW_TRACKING_URI": self.addresses["mlflow"],
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": self.passwords["mlflow"],
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
            "PREFECT_API_URL": self.addresses["prefect"],
            "PREFECT_API_AUTH_STRING": f"firstkd:{self.passwords['prefect']}",
            "PREFECT_HOME": str(self.folder / "prefect-client"),
            **self._s3_login,
        }

    @property
    def _s3_login(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": "firstkd",
            "AWS_SECRET_ACCESS_KEY": self.passwords["s3"],
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.addresses["s3"],
        }

    @property
    def _postgres_login(self) -> dict[str, str]:
        """Read by every client of PostgreSQL, so that no address holds a password."""
        return {"PGPASSWORD": self.passwords["postgres"]}

    def database(self, name: str, driver: str) -> str:
        return f"{driver}://{POSTGRES_USER}@{self.addresses['postgres']}/{name}"

    def _add(
        self,
        name: str,
        command: list[str],
        environment: dict[str, str],
        is_up: Callable[[], bool],
    ) -> None:
        clean = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("MLFLOW_", "PREFECT_", "AWS_"))
        }
        server = Server(command, {**clean, **environment}, self.folder / f"{name}.log", is_up)
        self.running[name] = server
        server.start()

    def _start_postgres(self) -> None:
        programs = postgres_programs()
        assert programs is not None
        port = free_port()
        self.addresses["postgres"] = f"127.0.0.1:{port}"
        # it refuses to run as root, and then needs a folder that another user may enter
        user = []
        home = self.postgres_home = Path(tempfile.mkdtemp(prefix="firstkd-postgres-"))
        if os.getuid() == 0:
            shutil.chown(home, "postgres")
            user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        password = home / "password"
        password.write_text(self.passwords["postgres"])
        make = [*user, str(programs / "initdb"), "--pgdata", str(home / "data"), "--no-sync"]
        make += ["--auth=scram-sha-256", f"--username={POSTGRES_USER}", f"--pwfile={password}"]
        subprocess.run(make, cwd=home, check=True, stdout=subprocess.DEVNULL)
        password.unlink()
        login = {**os.environ, **self._postgres_login}
        client = ["--host=127.0.0.1", f"--port={port}", f"--username={POSTGRES_USER}"]

        def is_up() -> bool:
            asked = [str(programs / "pg_isready"), *client, "--quiet"]
            return subprocess.run(asked, env=login).returncode == 0

        command = [*user, str(programs / "postgres"), "-D", str(home / "data")]
        command += ["-h", "127.0.0.1", "-p", str(port), "-k", str(home), "-c", "fsync=off"]
        self._add("postgres", command, {}, is_up)
        make = [programs / "psql", *client, "--quiet", "--dbname=postgres"]
        subprocess.run([*make, f"--file={INFRA / 'databases.sql'}"], env=login, check=True)

    def _start_s3(self) -> None:
        port = free_port()
        url = self.addresses["s3"] = f"http://127.0.0.1:{port}"
        command = [str(BIN / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
        self._add("s3", command, {}, lambda: status_of(url) is not None)
        make = [sys.executable, str(INFRA / "make_bucket.py"), BUCKET]
        for _ in range(2):  # which finds it the second time
            subprocess.run(make, env={**os.environ, **self._s3_login}, check=True)

    def _start_mlflow(self) -> None:
        port = free_port()
        url = self.addresses["mlflow"] = f"http://127.0.0.1:{port}"
        configuration = self.folder / "auth.ini"
        database = self.database("mlflow_auth", "postgresql")
        shipped = (INFRA / "mlflow-auth.ini").read_text()
        configuration.write_text(
            re.sub("^database_uri = .*$", f"database_uri = {database}", shipped, flags=re.M)
        )
        command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"]
        command += ["--backend-store-uri", self.database("mlflow", "postgresql")]
        command += ["--artifacts-destination", f"s3://{BUCKET}/mlflow"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        environment = {
            "MLFLOW_AUTH_CONFIG_PATH": str(configuration),
            "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
            "MLFLOW_AUTH_ADMIN_PASSWORD": self.passwords["mlflow"],
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
            "MLFLOW_S3_ENDPOINT_URL": self.addresses["s3"],
            **self._s3_login,
            **self._postgres_login,
        }
        self._add("mlflow", command, environment, lambda: status_of(f"{url}/health") == 200)

    def _start_prefect(self) -> None:
        port = free_port()
        url = self.addresses["prefect"] = f"http://127.0.0.1:{port}/api"
        command = [sys.executable, "-m", "prefect", "server", "start", "--no-ui"]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        environment = {
            "PREFECT_HOME": str(self.folder / "prefect"),
            "PREFECT_API_DATABASE_CONNECTION_URL": self.database("prefect", "postgresql+asyncpg"),
            "PREFECT_SERVER_API_AUTH_STRING": f"firstkd:{self.passwords['prefect']}",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASES_IN_FILES,
            **self._postgres_login,
        }
        self._add("prefect", command, environment, lambda: status_of(f"{url}/health") == 200)
