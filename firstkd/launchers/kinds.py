"""The kinds of launchers, one module each."""

from typing import Annotated

from pydantic import Field

from firstkd.launchers.hosts import Hosts
from firstkd.launchers.kubernetes import Kubernetes
from firstkd.launchers.local import Local
from firstkd.launchers.slurm import Slurm

AnyLauncher = Annotated[Local | Hosts | Slurm | Kubernetes, Field(discriminator="kind")]
LOCAL = Local(kind="local")
