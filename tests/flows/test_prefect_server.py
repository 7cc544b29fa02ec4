"""The server of one run, in a process of its own: Prefect keeps one for the whole process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from firstkd.errors import PipelineError
from flows import prefect_server
from flows.prefect_server import server_starting

START = """
import sys, httpx
from prefect import flow, get_client
from prefect.settings import get_current_settings
from flows.prefect_server import server_starting

with server_starting():
    pass
url = str(get_current_settings().api.url)
assert httpx.get(f"{url}/health").status_code == 200

@flow
def nothing():
    with get_client(sync_client=True) as client:
        return str(client.api_url), len(client.read_flow_runs())

used, flow_runs = nothing()
assert used.rstrip("/") == url and flow_runs == 1, (used, flow_runs)
print(url, flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_a_flow_takes_the_server_of_its_run_which_ends_with_it(
    tmp_path: Path, killed: bool
) -> None:
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path)}
    environment.pop("PREFECT_API_URL", None)
    process = subprocess.Popen(
        [sys.executable, "-c", START],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert answers(url)
    if killed:
        process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if killed else 0)
    deadline = time.monotonic() + 30
    while killed and answers(url) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not answers(url)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.ConnectError:
        return False


def test_a_server_that_is_named_and_does_not_answer_is_one_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prefect_server, "ANSWER_SECONDS", 0.0)
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.raises(PipelineError, match=r"9/api does not answer; .* or unset PREFECT_API_URL"),
        server_starting(),
    ):
        pytest.fail("nothing is begun without it")


@pytest.mark.parametrize(
    ("home", "problem"),
    [
        ("/proc/nowhere", "/proc/nowhere, which is not writable"),
        ("/tmp/a?b", r"the \? in /tmp/a\?b"),
    ],
)
def test_a_home_that_prefect_cannot_use_is_named_before_a_server_starts(
    home: str, problem: str
) -> None:
    with (
        temporary_settings({PREFECT_HOME: Path(home), PREFECT_API_URL: None}),
        pytest.raises(PipelineError, match=f"{problem}.*; set PREFECT_HOME"),
        server_starting(),
    ):
        pass
    assert not Path(home).exists()
