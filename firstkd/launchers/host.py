"""What a launcher starts on each host: that host's share of all processes.

The environment says which host this is and where the first one is (torchrun's PET_NODE_RANK,
PET_NNODES, PET_MASTER_ADDR, PET_MASTER_PORT), and PET_RDZV_ID names the launch: a folder among
the stage's logs, in which this host reports a failure.
"""

import os
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import psutil

from firstkd.files import write_json
from firstkd.launchers.base import Job
from firstkd.launchers.torchrun import STOPPED, RankError, torchrun

LAUNCH = "PET_RDZV_ID"
LEASH = "FIRSTKD_ENDS_WITH_INPUT"
"""Set if the end of standard input is the order to stop, as no signal gets through to here."""
PASSED_ON = ("CUDA_", "GLOO_", "HF_", "NCCL_", "OMP_", "PYTHONPATH", "TORCH_")
"""Prefixes of the libraries' variables, which this host passes on to others."""
WITHHELD = "HF_TOKEN"
"""Prefix of those it withholds: other users could read them on the command line."""
BEGUN = ".begun"
"""Suffix of the file with which a host reports that it has begun."""
FOLDER_SECONDS = 15.0
"""Time for a file from another host to appear on a file system that both see."""
NAME_SECONDS = 600.0
"""Time for the first host's name to resolve: a pod's does once the pod has begun."""
ELSEWHERE = ("192.0.2.1", 9)
"""An address that no host has (RFC 5737); nothing is sent there."""


def is_host() -> bool:
    """Whether a launcher started this process to run the processes of a host."""
    return LAUNCH in os.environ


def command_line(
    job: Job,
    launch: str,
    hosts: int,
    rank: str,
    address: str,
    port: int,
    python: str = sys.executable,
    more: Mapping[str, str] | None = None,
) -> str:
    """Return the shell command line for a host; `rank` and `address` are shell words."""
    set_here = {"PET_RDZV_ID": launch, "PET_NNODES": str(hosts), "PET_MASTER_PORT": str(port)}
    values = [f"{k}={shlex.quote(v)}" for k, v in {**set_here, **(more or {})}.items()]
    values += [f"PET_NODE_RANK={rank}", f"PET_MASTER_ADDR={address}"]
    command = shlex.join([python, "-m", job.module, *job.arguments])
    return f"exec env {' '.join(values)} {command}"


def passed_on() -> dict[str, str]:
    names = sorted(name for name in os.environ if name.startswith(PASSED_ON))
    return {name: os.environ[name] for name in names if not name.startswith(WITHHELD)}


def run_host(job: Job) -> None:
    """Run this host's processes and wait for them to end. Exits if they fail.

    Raises RankError if this is not the project's folder or the first host's name is unknown.
    """
    if LEASH in os.environ:
        threading.Thread(target=_stop_at_end_of_input, daemon=True).start()
    place = job.logs / "hosts" / os.environ[LAUNCH]
    _check_shared(place)
    (place / f"{os.environ['PET_NODE_RANK']}{BEGUN}").touch()
    _take_the_way_to(os.environ["PET_MASTER_ADDR"], int(os.environ["PET_MASTER_PORT"]))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else it warns of names without address
    # while the hosts wait for each other, in C++, no Python handler would run
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    failure = torchrun(job)
    if failure is None:
        return
    if failure.cause == "stopped":
        sys.exit(STOPPED)
    write_json(place / f"{os.environ['PET_NODE_RANK']}.json", asdict(failure))
    sys.exit(RankError.exit_code if failure.cause == "explained" else 1)


def _stop_at_end_of_input() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _check_shared(place: Path) -> None:
    deadline = time.monotonic() + FOLDER_SECONDS
    while not place.is_dir():
        if time.monotonic() > deadline:
            raise RankError(
                f"{socket.gethostname()}: {Path.cwd()} is not the project's folder on the flow's "
                f"host: {place}, created there, is missing here; put the project on a file system "
                "that all hosts share, at the same path"
            )
        time.sleep(0.2)


def _take_the_way_to(address: str, port: int) -> None:
    """Make gloo use the interface that leads to the first host.

    By default it uses that of this host's own name, which is often the loopback.
    """
    own = _own_address_towards(address, port)
    for interface, addresses in psutil.net_if_addrs().items():
        if any(found.address.partition("%")[0] == own for found in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def _own_address_towards(address: str, port: int) -> str:
    deadline = time.monotonic() + NAME_SECONDS
    while True:
        try:
            family, *_, there = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0]
            break
        except socket.gaierror as error:
            if time.monotonic() > deadline:
                raise RankError(
                    f"{socket.gethostname()} cannot resolve {address} ({error.strerror}); in "
                    "machine.launcher, name the first host as the others know it"
                ) from error
            time.sleep(1)
    own = _source(family, there)
    if not own.startswith("127.") and own != "::1":
        return own
    try:  # this is the first host, and its name resolves to the loopback
        return _source(socket.AF_INET, ELSEWHERE)
    except OSError:  # no other host can be reached
        return own


def _source(family: int, there: tuple[object, ...]) -> str:
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(there)
        return str(probe.getsockname()[0])
