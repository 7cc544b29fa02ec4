"""The embedded server, in a process of its own: Prefect keeps one for the whole process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from firstkd.errors import PipelineError
from flows.prefect_server import server_starting

START = """
import httpx
from prefect import flow
from prefect.server.api.server import SubprocessASGIServer
from flows.prefect_server import server_starting

with server_starting():
    process = SubprocessASGIServer()
port = process.port
assert httpx.get(f"http://127.0.0.1:{port}/api/health").status_code == 200

@flow
def nothing():
    return SubprocessASGIServer().port

assert nothing() == port
"""


@pytest.mark.slow
def test_the_embedded_server_is_ready_and_the_one_that_a_flow_takes(tmp_path: Path) -> None:
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path)}
    environment["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] = "180"
    done = subprocess.run(
        [sys.executable, "-c", START], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_a_server_that_is_named_and_does_not_answer_is_one_error() -> None:
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.raises(PipelineError, match=r"9/api does not answer .* or unset PREFECT_API_URL"),
        server_starting(),
    ):
        pytest.fail("nothing is begun without it")
