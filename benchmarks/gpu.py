"""Run everything that needs a GPU: the tests marked `gpu`, and benchmarks.

Prints one JSON object: the device, how the tests ended, and what each benchmark printed or why it
failed. Needs the stages prepare and model-base. Exits with 1 if anything failed.

Run as  make test-gpu
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

BENCHMARKS = ("loss", "capture", "step", "train", "zero")
KEPT_LINES = 5
"""Last lines of a failed benchmark's errors."""


def tests() -> dict[str, Any]:
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    sys.stderr.write(done.stdout)
    return {"exit_code": done.returncode, "summary": done.stdout.splitlines()[-1]}


def benchmark(name: str) -> dict[str, Any]:
    command = [sys.executable, "-m", f"benchmarks.{name}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"exit_code": done.returncode, "error": done.stderr.splitlines()[-KEPT_LINES:]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    if not torch.cuda.is_available():
        sys.exit(f"torch {torch.__version__} finds no GPU that it can use")
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "devices": torch.cuda.device_count(),
        "torch": torch.__version__,
        "tests": tests(),
    }
    for name in BENCHMARKS:
        print(f"benchmarks.{name}", file=sys.stderr)
        found[name] = benchmark(name)
    print(json.dumps(found, indent=2))
    return int(any(part.get("exit_code") for part in found.values() if isinstance(part, dict)))


if __name__ == "__main__":
    if not Path("data/model/base").exists():
        sys.exit("data/model/base is missing; run `dvc repro prepare model-base`")
    sys.exit(main())
