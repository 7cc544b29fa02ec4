"""Can this machine run the stages? Each check says what it found, and how to fix what is wrong."""

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

from firstkd.errors import ConfigError
from firstkd.settings import RuntimeSettings
from firstkd.words import counted

PYTHON = (3, 11)
ANSWER_SECONDS = 5.0
"""Time within which a server must answer."""
FREE_DISK = 10 * 10**9
"""Bytes: the environment, the default model several times, and DVC's cache of it."""
FREE_MEMORY = 6 * 10**9
"""Bytes: the default run's peak is 5.3 GB."""


@dataclass(frozen=True)
class Check:
    name: str
    verdict: Literal["ok", "warn", "wrong"]
    """`warn`: a run works, but something may surprise you."""
    found: str
    fix: str = ""


def examine_machine(root: Path) -> Iterator[Check]:
    yield _python()
    yield _packages(root)
    free = shutil.disk_usage(root).free
    fix = f"a default run needs {FREE_DISK / 1e9:.0f} GB: free some, e.g. `dvc gc --workspace`"
    yield warn_unless(free >= FREE_DISK, "disk", f"{free / 1e9:.0f} GB free", fix)
    meminfo = Path("/proc/meminfo")
    if meminfo.exists() and (found := re.search(r"MemAvailable:\s+(\d+)", meminfo.read_text())):
        size = int(found[1]) * 1024
        fix = "lower micro_batch_size in the training settings"
        yield warn_unless(size >= FREE_MEMORY, "memory", f"{size / 1e9:.1f} GB available", fix)
    yield _device()


def check_place(database: Path) -> None:
    """Raise ConfigError for a path of MLflow's database from which it could not load models.

    MLflow takes a ? for the start of a query and %20 for an escape, even in plain paths.
    """
    if re.search(r"\?|%[0-9A-Fa-f]{2}", str(database)):
        raise ConfigError(
            f"{database}: MLflow misreads a ? or a % followed by two hex digits in a folder's name "
            "and could not load models from there; rename the folder, or choose another place with "
            "MLFLOW_TRACKING_URI"
        )


def examine_threads(settings: RuntimeSettings) -> Check:
    cores = len(os.sched_getaffinity(0))
    found = f"runtime.threads is {settings.threads}; this machine has {counted(cores, 'core')}"
    fix = "lower it in params.yaml, or expect a slow run"
    return warn_unless(settings.threads <= cores, "threads", found, fix)


def warn_unless(holds: bool, name: str, found: str, fix: str) -> Check:
    return Check(name, "ok", found) if holds else Check(name, "warn", found, fix)


def _python() -> Check:
    found, wanted = f"{platform.python_version()} at {sys.executable}", "3.11"
    if sys.version_info[:2] < PYTHON:
        return Check("python", "wrong", found, f"install Python {wanted}, then `make setup`")
    is_tested = sys.version_info[:2] == PYTHON
    return warn_unless(is_tested, "python", found, f"constraints.txt is for Python {wanted}")


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
    return Check("packages", "ok", f"all {len(pins)} versions match constraints.txt")


def _device() -> Check:
    """Ask the driver and torch's metadata, since importing torch takes seconds."""
    built = version("torch")
    if shutil.which("nvidia-smi") is None:
        return Check("device", "ok", f"CPU, {os.cpu_count()} cores; torch {built}")
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return Check("device", "wrong", done.stdout.strip(), "repair the NVIDIA driver")
    found = f"{'; '.join(done.stdout.splitlines())}; torch {built}"
    fix = "this torch is CPU-only; install a CUDA build"
    return warn_unless(not built.endswith("+cpu"), "device", found, fix)


def server_answers(name: str, url: str, fix: str) -> Check:
    """Check that a GET succeeds; the address is shown without its password."""
    try:
        httpx.get(url, timeout=ANSWER_SECONDS).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error).replace(url, shown(url))
        return Check(name, "wrong", f"{shown(url)} does not answer ({reason})", fix)
    return Check(name, "ok", f"{shown(url)} answers")


def shown(address: str) -> str:
    """Return an address without its user and password."""
    return re.sub(r"://[^/]*@", "://***@", address)
