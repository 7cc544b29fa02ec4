"""Processes on this host alone."""

from typing import ClassVar, Literal

from firstkd.launchers.base import Job, Launcher
from firstkd.launchers.torchrun import ONE_HOST, torchrun


class Local(Launcher):
    kind: Literal["local"]
    is_here: ClassVar[bool] = True

    @property
    def number_of_hosts(self) -> int:
        return 1

    def launch(self, job: Job) -> None:
        failure = torchrun(job, *ONE_HOST)
        if failure:
            failure.end()
