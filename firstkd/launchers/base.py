"""How the processes of a stage are started: on this host alone, or on several.

The kind is a setting of the machine, on which no stage depends: the same processes compute the same
result wherever they run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from firstkd.section import Section


@dataclass(frozen=True)
class Job:
    """A module to run in several processes."""

    module: str
    arguments: Sequence[str]
    processes: int
    """Per host."""
    threads: int
    stop_seconds: float
    """For stopped processes to save their step before they are killed."""
    logs: Path
    """The folder of its stage's logs, relative to the project's folder."""


class Launcher(Section):
    kind: str
    is_here: ClassVar[bool] = False
    """Whether a single process need not be launched because it is this one."""

    @property
    def number_of_hosts(self) -> int:
        raise NotImplementedError

    def launch(self, job: Job) -> None:
        """Run a job on all hosts and wait for it to end.

        Raises RankError with the PipelineError of the process that failed first, or if the hosts
        cannot find each other or the project's folder. Any other failure is shown with its
        traceback, and the exit code is 1. On SIGTERM, exits once all have saved their step.
        """
        raise NotImplementedError
