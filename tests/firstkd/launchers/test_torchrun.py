"""Several processes of one module, as real processes."""

import os
import subprocess
import sys

import pytest

from tests.tiny import REPOSITORY

LAUNCH = """
import sys
from pathlib import Path
from firstkd.launchers.base import Job
from firstkd.launchers.torchrun import ONE_HOST, torchrun
job = Job("tests.firstkd.launchers.meeting", sys.argv[1:], 2, 1, 60.0, Path("logs"))
sys.exit(bool(torchrun(job, *ONE_HOST)))
"""
OF_A_RANK = {"RANK", "LOCAL_RANK", "WORLD_SIZE"}


@pytest.mark.distributed
@pytest.mark.slow
def test_two_launches_on_one_host_do_not_collide(tmp_path):
    """Even with the one port for everybody that older versions of torchrun take by default."""
    outside = {name: value for name, value in os.environ.items() if name not in OF_A_RANK}
    launches = [
        subprocess.Popen(
            [sys.executable, "-c", LAUNCH, tmp_path, name, "4"],
            env={**outside, "PYTHONPATH": str(REPOSITORY), "PET_MASTER_PORT": "29500"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("first", "second")
    ]
    for launched in launches:
        _, said = launched.communicate()
        assert launched.returncode == 0, said
