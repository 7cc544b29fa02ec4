"""Create a launch's Job, show its pods' output, wait for it to end, and leave nothing behind.

Run as  python -m firstkd.launchers.pods MANIFEST   (by the launcher of kind kubernetes)

On SIGTERM the Job is deleted, which passes SIGTERM on to its pods and waits for them.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from firstkd.launchers.torchrun import STOPPED

POLL_SECONDS = 2.0
PATIENCE_SECONDS = 600.0
"""How long the cluster may not answer before a Job is given up."""


def main(manifest: Path) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))
    _, job = json.loads(manifest.read_text())["items"]
    try:
        _kubectl("create", "--filename", str(manifest))
        return _follow(job["metadata"], job["spec"]["completions"])
    finally:
        # in the foreground: wait until the pods have saved their step and are gone
        _kubectl(
            "delete", "--filename", str(manifest), "--cascade=foreground", "--ignore-not-found"
        )


def _follow(metadata: dict[str, str], pods: int) -> int:
    """Show the pods' output once all are running; return 0 if the Job completes."""
    of = [f"--namespace={metadata['namespace']}"] if "namespace" in metadata else []
    logs: subprocess.Popen[bytes] | None = None
    while True:
        found = json.loads(_patiently("get", "job", metadata["name"], *of, "--output=json"))
        status: dict[str, Any] = found.get("status", {})
        if logs is None and status.get("ready", 0) == pods:
            selector = f"--selector=job-name={metadata['name']}"
            follow = ["logs", "--follow", "--tail=-1", f"--max-log-requests={pods}", selector, *of]
            logs = subprocess.Popen(["kubectl", *follow], stdout=sys.stderr)
        for condition in status.get("conditions", []):
            if condition["status"] == "True" and condition["type"] in ("Complete", "Failed"):
                if logs:
                    logs.wait()
                print(condition.get("message", condition["type"]), file=sys.stderr)
                return int(condition["type"] == "Failed")
        time.sleep(POLL_SECONDS)


def _patiently(*arguments: str) -> str:
    """As `_kubectl`, but an API server that does not answer for a while ends no training."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        done = subprocess.run(["kubectl", *arguments], capture_output=True, text=True)
        if not done.returncode:
            return done.stdout
        print(done.stderr.strip(), file=sys.stderr)
        if "NotFound" in done.stderr or time.monotonic() > deadline:
            sys.exit(done.returncode)
        time.sleep(POLL_SECONDS)


def _kubectl(*arguments: str) -> str:
    """Return what kubectl prints; exit with its code if it fails."""
    done = subprocess.run(["kubectl", *arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
