"""Is this machine fit for a run? Each check says what it found, and how to mend what is wrong."""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import httpx
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from firstkd.errors import ConfigError, PipelineError
from firstkd.settings import Settings, load_settings
from flows.workspace import Workspace

PYTHON = (3, 11)
FREE_DISK = 10 * 10**9
"""Bytes: the environment, the default model several times, and DVC's cache of it."""
FREE_MEMORY = 6 * 10**9
"""Bytes: the default run's peak is 5.3 GB."""
SECONDS = 5.0


@dataclass(frozen=True)
class Check:
    name: str
    verdict: Literal["ok", "mind", "wrong"]
    """`mind`: a run works, but something may surprise."""
    found: str
    mend: str = ""


def examine(root: Path) -> list[Check]:
    checks = [_python(), _packages(root), _disk(root), _memory(), _device()]
    try:
        settings = load_settings(root / "params.yaml")
    except ConfigError as error:
        return [*checks, Check("settings", "wrong", str(error), "correct params.yaml")]
    checks.append(_threads(settings))
    checks += _dvc(root)
    return [*checks, _mlflow(root, settings), _prefect()]


def _python() -> Check:
    found = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info[:2] == PYTHON:
        return Check("python", "ok", found)
    wanted = ".".join(map(str, PYTHON))
    if sys.version_info[:2] > PYTHON:
        return Check("python", "mind", found, f"constraints.txt was made with Python {wanted}")
    return Check("python", "wrong", found, f"install Python {wanted}, then `make setup`")


def _packages(root: Path) -> Check:
    constraints = root / "constraints.txt"
    if not constraints.exists():
        return Check("packages", "mind", "there is no constraints.txt to compare with")
    other, missing = [], []
    pins = re.findall(r"^([\w.-]+)==(\S+)", constraints.read_text(encoding="utf-8"), re.MULTILINE)
    for name, wanted in pins:
        try:
            found = version(name).partition("+")[0]
        except PackageNotFoundError:
            missing.append(name)
            continue
        if found != wanted.partition("+")[0]:
            other.append(f"{name} {found} instead of {wanted}")
    if other or missing:
        absent = [f"{len(missing)} missing: {', '.join(missing[:5])}"] if missing else []
        return Check("packages", "mind", "; ".join([*other[:5], *absent]), "run `make setup`")
    return Check("packages", "ok", f"the {len(pins)} versions of constraints.txt")


def _disk(root: Path) -> Check:
    free = shutil.disk_usage(root).free
    found = f"{free / 1e9:.0f} GB free"
    if free >= FREE_DISK:
        return Check("disk", "ok", found)
    mend = (
        f"a default run wants {FREE_DISK / 1e9:.0f} GB: free some, e.g. with `dvc gc --workspace`"
    )
    return Check("disk", "mind", found, mend)


def _memory() -> Check:
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return Check("memory", "mind", "not known on this system")
    available = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text(encoding="utf-8"))
    if not available:
        return Check("memory", "mind", "not known on this system")
    size = int(available[1]) * 1024
    found = f"{size / 1e9:.1f} GB available"
    if size >= FREE_MEMORY:
        return Check("memory", "ok", found)
    return Check("memory", "mind", found, "lower the micro_batch_size of finetune and distill")


def _device() -> Check:
    """Ask the driver and the installed torch; importing torch takes seconds."""
    built = version("torch")
    if shutil.which("nvidia-smi") is None:
        return Check("device", "ok", f"CPU, {os.cpu_count()} cores; torch {built}")
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return Check("device", "wrong", done.stdout.strip(), "mend the NVIDIA driver")
    found = f"{'; '.join(done.stdout.splitlines())}; torch {built}"
    if built.endswith("+cpu"):
        return Check("device", "mind", found, "this torch is for CPU: install one with CUDA")
    return Check("device", "ok", found)


def _threads(settings: Settings) -> Check:
    threads, cores = settings.runtime.threads, len(os.sched_getaffinity(0))
    found = f"runtime.threads is {threads}, for {cores} cores"
    if threads <= cores:
        return Check("threads", "ok", found)
    return Check("threads", "mind", found, "lower it in params.yaml, or expect a slow run")


def _dvc(root: Path) -> Iterator[Check]:
    workspace = Workspace(root)
    try:
        stages = workspace.stages()
    except PipelineError as error:
        yield Check("dvc", "wrong", str(error), "run `dvc init`, or mend dvc.yaml")
        return
    yield Check("dvc", "ok", f"{len(stages)} stages")
    listed = workspace.remote_urls()
    if not listed:
        mend = "to share results: `dvc remote add --default NAME URL`"
        yield Check("remote", "ok", f"none; everything stays on this machine ({mend})")
    for name, url in listed.items():
        url = shown(url)
        if "://" in url:
            yield Check("remote", "ok", f"{name}: {url} (`dvc status --cloud` asks it)")
        elif os.access(url, os.W_OK):
            yield Check("remote", "ok", f"{name}: {url}")
        else:
            mend = f"make the folder, or `dvc remote modify {name} url PLACE`"
            yield Check("remote", "wrong", f"{name}: {url} cannot be written to", mend)


def _mlflow(root: Path, settings: Settings) -> Check:
    uri = os.environ.get("MLFLOW_TRACKING_URI") or settings.record.tracking_uri
    mend = "start it, or mend MLFLOW_TRACKING_URI or record.tracking_uri in params.yaml"
    if uri.startswith(("http://", "https://")):
        return _answers("mlflow", f"{uri}/health", mend)
    try:
        url = make_url(uri)
    except ArgumentError:
        return Check("mlflow", "wrong", f"{uri!r} is no URI like sqlite:/// or https://", mend)
    if url.get_backend_name() != "sqlite" or not url.database:
        return Check("mlflow", "mind", f"{url.render_as_string()} was not asked")
    database = (root / url.database).resolve()
    there = database if database.exists() else _nearest_folder(database)
    if not os.access(there, os.W_OK):
        return Check("mlflow", "wrong", f"{there} cannot be written to", "mend its permissions")
    return Check("mlflow", "ok", f"{database}{'' if database.exists() else ' (made by a run)'}")


def _nearest_folder(path: Path) -> Path:
    return next(folder for folder in path.parents if folder.exists())


def _prefect() -> Check:
    url = os.environ.get("PREFECT_API_URL")
    if url is None:
        return Check("prefect", "ok", "no server set; a run starts its own")
    mend = "run `prefect server start`, or unset PREFECT_API_URL"
    return _answers("prefect", f"{url}/health", mend)


def _answers(name: str, url: str, mend: str) -> Check:
    try:
        httpx.get(url, timeout=SECONDS).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error).replace(url, shown(url))
        return Check(name, "wrong", f"{shown(url)} does not answer ({reason})", mend)
    return Check(name, "ok", f"{shown(url)} answers")


def shown(address: str) -> str:
    """Return an address without who and what password is in it."""
    return re.sub(r"://[^/]*@", "://***@", address)
