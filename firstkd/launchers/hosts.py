"""Hosts listed by name, each reached with a command such as ssh."""

import shlex
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from firstkd.launchers.base import Job
from firstkd.launchers.host import LEASH, command_line, passed_on
from firstkd.launchers.remote import Reach, Remote
from firstkd.section import Port

HOST, COMMAND = "{host}", "{command}"


class Hosts(Remote):
    kind: Literal["hosts"]
    stops_by_signal: ClassVar[bool] = False

    hosts: Annotated[list[str], Field(min_length=1)]
    """Names by which this host reaches them; the processes meet on the first."""
    reach: str = "ssh -o BatchMode=yes -o ServerAliveInterval=15 {host} {command}"
    """How to run a command on a host. {command} is one word: a command line for a shell there."""
    address: str | None = None
    """The first host's address, as all of them know it; null to use its name."""
    port: Port = 29400
    """Port on the first host where they meet; unauthenticated, so the network must be trusted."""

    @property
    def number_of_hosts(self) -> int:
        return len(self.hosts)

    @model_validator(mode="after")
    def _each_is_reached(self) -> Self:
        words = shlex.split(self.reach)
        if COMMAND not in words or HOST not in self.reach:
            raise ValueError(
                f"reach: {self.reach!r} needs {HOST}, and {COMMAND} as a separate word, such as "
                f"'ssh {HOST} {COMMAND}'"
            )
        return self

    def commands(self, job: Job, place: Path) -> list[Reach]:
        address = shlex.quote(self.address or self.hosts[0].rpartition("@")[2])
        words, found = shlex.split(self.reach), []
        for rank, host in enumerate(self.hosts):
            more = {**passed_on(), LEASH: "1"}
            line = command_line(
                job, place.name, len(self.hosts), str(rank), address, self.port, more=more
            )
            line = f"cd {shlex.quote(str(Path.cwd()))} && {line}"
            command = [line if word == COMMAND else word.replace(HOST, host) for word in words]
            found.append(Reach(f"host {host}", range(rank, rank + 1), command))
        return found
