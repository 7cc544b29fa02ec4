"""Is this machine ready for a run? Each check says what it found, and how to fix what is wrong."""

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
    verdict: Literal["ok", "warn", "wrong"]
    """`warn`: a run works, but something may surprise."""
    found: str
    fix: str = ""


def examine(root: Path) -> Iterator[Check]:
    yield _python()
    yield _packages(root)
    free = shutil.disk_usage(root).free
    fix = f"a default run wants {FREE_DISK / 1e9:.0f} GB: free some, e.g. `dvc gc --workspace`"
    yield _warn_unless(free >= FREE_DISK, "disk", f"{free / 1e9:.0f} GB free", fix)
    meminfo = Path("/proc/meminfo")
    if meminfo.exists() and (found := re.search(r"MemAvailable:\s+(\d+)", meminfo.read_text())):
        size = int(found[1]) * 1024
        fix = "lower the micro_batch_size of the stages that train"
        yield _warn_unless(size >= FREE_MEMORY, "memory", f"{size / 1e9:.1f} GB available", fix)
    yield _device()
    try:
        settings = load_settings(root / "params.yaml")
    except ConfigError as error:
        yield Check("settings", "wrong", str(error), "correct params.yaml")
        return
    threads, cores = settings.runtime.threads, len(os.sched_getaffinity(0))
    fix = "lower it in params.yaml, or expect a slow run"
    found_threads = f"runtime.threads is {threads}, for {cores} cores"
    yield _warn_unless(threads <= cores, "threads", found_threads, fix)
    yield from _dvc(root)
    yield _mlflow(root, settings)
    url = os.environ.get("PREFECT_API_URL")
    if url is None:
        yield Check("prefect", "ok", "no server set; a run starts its own")
    else:
        fix = "run `prefect server start`, or unset PREFECT_API_URL"
        yield _answers("prefect", f"{url}/health", fix)


def _warn_unless(holds: bool, name: str, found: str, fix: str) -> Check:
    return Check(name, "ok", found) if holds else Check(name, "warn", found, fix)


def _python() -> Check:
    found, wanted = f"{platform.python_version()} at {sys.executable}", "3.11"
    if sys.version_info[:2] < PYTHON:
        return Check("python", "wrong", found, f"install Python {wanted}, then `make setup`")
    is_tested = sys.version_info[:2] == PYTHON
    return _warn_unless(is_tested, "python", found, f"constraints.txt is for Python {wanted}")


def _packages(root: Path) -> Check:
    constraints = root / "constraints.txt"
    if not constraints.exists():
        return Check("packages", "warn", "there is no constraints.txt to compare with")
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
        return Check("packages", "warn", "; ".join([*other[:5], *absent]), "run `make setup`")
    return Check("packages", "ok", f"the {len(pins)} versions of constraints.txt")


def _device() -> Check:
    """Ask the driver and the installed torch; importing torch takes seconds."""
    built = version("torch")
    if shutil.which("nvidia-smi") is None:
        return Check("device", "ok", f"CPU, {os.cpu_count()} cores; torch {built}")
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return Check("device", "wrong", done.stdout.strip(), "repair the NVIDIA driver")
    found = f"{'; '.join(done.stdout.splitlines())}; torch {built}"
    fix = "this torch is for CPU: install one with CUDA"
    return _warn_unless(not built.endswith("+cpu"), "device", found, fix)


def _dvc(root: Path) -> Iterator[Check]:
    workspace = Workspace(root)
    try:
        stages = workspace.stages()
    except PipelineError as error:
        yield Check("dvc", "wrong", str(error), "run `dvc init`, or correct dvc.yaml")
        return
    yield Check("dvc", "ok", f"{len(stages)} stages")
    listed = workspace.remote_urls()
    if not listed:
        way = "to share results: `dvc remote add --default NAME URL`"
        yield Check("remote", "ok", f"none; everything stays on this machine ({way})")
    for name, url in listed.items():
        found = f"{name}: {shown(url)}"
        if "://" in url:
            yield Check("remote", "ok", f"{found} (`dvc status --cloud` asks it)")
        elif os.access(url, os.W_OK):
            yield Check("remote", "ok", found)
        else:
            fix = f"make the folder, or `dvc remote modify {name} url PLACE`"
            yield Check("remote", "wrong", f"{found} cannot be written to", fix)


def _mlflow(root: Path, settings: Settings) -> Check:
    from flows.tracking import address_of, database_at

    fix = "start it, or correct MLFLOW_TRACKING_URI or record.tracking_uri in params.yaml"
    try:
        url = address_of(settings.record)
    except ConfigError as error:
        return Check("mlflow", "wrong", str(error), fix)
    if url.drivername in ("http", "https"):
        return _answers("mlflow", f"{url.render_as_string(hide_password=False)}/health", fix)
    database = database_at(root, url)
    if database is None:
        return Check("mlflow", "warn", f"{url.render_as_string()} was not asked")
    there = next(path for path in [database, *database.parents] if path.exists())
    if not os.access(there, os.W_OK):
        return Check("mlflow", "wrong", f"{there} cannot be written to", "change its permissions")
    return Check("mlflow", "ok", f"{database}{'' if database.exists() else ' (made by a run)'}")


def _answers(name: str, url: str, fix: str) -> Check:
    try:
        httpx.get(url, timeout=SECONDS).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error).replace(url, shown(url))
        return Check(name, "wrong", f"{shown(url)} does not answer ({reason})", fix)
    return Check(name, "ok", f"{shown(url)} answers")


def shown(address: str) -> str:
    """Return an address without its user and password."""
    return re.sub(r"://[^/]*@", "://***@", address)
