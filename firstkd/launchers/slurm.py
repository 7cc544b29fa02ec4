"""Hosts from SLURM: `srun` starts the job on each, in a new allocation or in this one."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from firstkd.launchers.base import Job
from firstkd.launchers.host import LEASH, command_line
from firstkd.launchers.remote import Reach, Remote
from firstkd.section import Port, Positive

RANK = "$SLURM_PROCID"
FIRST_HOST = '$(scontrol show hostnames "$SLURM_STEP_NODELIST" | head -n 1)'


class Slurm(Remote):
    kind: Literal["slurm"]
    stops_by_signal: ClassVar[bool] = False  # on SIGTERM, srun kills what it started

    hosts: Positive
    options: Annotated[list[str], Field(default_factory=list)]
    """Options of srun: what each host needs (GPUs, processors), and for how long."""
    port: Port = 29400
    """Port on the first host where they meet; unauthenticated, so the network must be trusted."""

    @property
    def number_of_hosts(self) -> int:
        return self.hosts

    def commands(self, job: Job, place: Path) -> list[Reach]:
        hosts, more = self.hosts, {LEASH: "1"}
        line = command_line(job, place.name, hosts, RANK, FIRST_HOST, self.port, more=more)
        command = [
            "srun",
            f"--job-name={place.name}",
            f"--nodes={hosts}",
            f"--ntasks={hosts}",
            "--ntasks-per-node=1",
            # the launcher ends the others itself, once the host at fault has reported
            "--kill-on-bad-exit=0",
            "--wait=0",
            *self.options,
            *("sh", "-c", line),
        ]
        return [Reach("srun", range(hosts), command)]
