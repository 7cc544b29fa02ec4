"""Separate projects in which benchmarks train with `dvc repro`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from firstkd.settings import load_settings
from tasks.graph import write_graph

REPOSITORY = Path(__file__).parents[1]


def write(root: Path, params: Any) -> None:
    """Write a project with these settings and the code as it is now, replacing what is there.

    Projects in the same folder share a cache, so what they have in common is built once.
    """
    for name in ("tasks", "firstkd"):
        shutil.copytree(
            REPOSITORY / name,
            root / name,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    YAML().dump(params, root / "params.yaml")
    write_graph(root, load_settings(root / "params.yaml"))
    if not (root / ".dvc").exists():
        dvc(root, "init", "--no-scm", "--quiet")
        dvc(root, "cache", "dir", str(root.parent / "cache"))
        dvc(root, "config", "cache.type", "hardlink,copy")  # models are kept once, not twice


def dvc(root: Path, *arguments: str) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1"}
    command = [sys.executable, "-m", "dvc", *arguments]
    subprocess.run(command, cwd=root, env=environment, check=True, stdout=sys.stderr)
