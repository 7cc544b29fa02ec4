"""The project folder as DVC sees it: which stages there are, what is stale, what was made.

DVC is used through its command line and decides what must run; nothing here repeats its graph.
"""

import fcntl
import hashlib
import json
import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configobj import ConfigObj
from ruamel.yaml import YAML

from firstkd.errors import ArtifactError, PipelineError
from firstkd.processes import OutputSink
from flows import dvc
from flows.dvc import Outcome, Shown, WorkspaceBusyError


@dataclass(frozen=True)
class Workspace:
    root: Path
    stop_seconds: float = 300.0
    """As retrain.stop_seconds: from SIGTERM to SIGKILL for a command that is ended early."""

    @property
    def place(self) -> str:
        """A short name that no two workspaces share, on any machine."""
        place = hashlib.sha256(f"{socket.gethostname()}:{self.root}".encode()).hexdigest()
        return place[:12]

    def stages(self) -> list[str]:
        """Return the names of all stages, in the order of dvc.yaml."""
        return dvc.ask(self.root, "stage", "list", "--name-only", "--fail").split()

    def stale(self) -> set[str]:
        """Return the stages whose own inputs or outputs differ from dvc.lock.

        Stages that depend on them are not in the set until they have run.
        """
        return set(self.changes())

    def changes(self) -> dict[str, Any]:
        """Return what DVC says has changed in each stale stage."""
        changes: dict[str, Any] = json.loads(dvc.ask(self.root, "status", "--json"))
        return changes

    def remote_urls(self) -> dict[str, str]:
        """Return the address of each DVC remote."""
        # not `dvc remote list`, which wraps long addresses
        listed = dvc.ask(self.root, "config", "--list").splitlines()
        found = (re.fullmatch(r"remote\.(.+?)\.url=(.+)", line) for line in listed)
        return {match[1]: match[2] for match in found if match}

    def reproduce(self, stage: str, sink: OutputSink) -> Outcome:
        """Bring a stage, but not what it depends on, up to date with `dvc repro`.

        Raises StageError with the stage's own error message.
        """
        # wait for the lock: a stage's hours of work must not be lost to a `dvc push` of seconds
        said = self._shown(sink, "--wait-for-lock", "repro", "--single-item", stage)
        said.check()
        return said.outcome(stage)

    def reproduce_each(self, stages: Sequence[str], sink: OutputSink, force: bool) -> None:
        """Bring these stages, and no others, up to date in this order.

        With `force` each runs again, whatever DVC has cached.
        """
        options = ["--force", "--no-run-cache"] if force else []
        self._shown(sink, "repro", "--single-item", *options, *stages).check()

    def damaged(self) -> list[str]:
        """Return the outputs that are missing or differ from dvc.lock; hashes their files."""
        return sorted(
            path
            for found in self.changes().values()
            for change in found
            if isinstance(change, dict)
            for path in change.get("changed outs", {})
        )

    def check_unchanged(self, digest: str) -> None:
        """Raise PipelineError unless the outputs here match the dvc.lock with this digest."""
        if self.lock_digest() != digest or self.damaged():
            raise PipelineError(
                "the results were changed while being recorded: another `dvc repro` ran here; "
                "try again"
            )

    def push(self, sink: OutputSink) -> None:
        """Copy what dvc.lock names to the default remote."""
        self._shown(sink, "--wait-for-lock", "push", bars=True).check()

    def restore(self, sink: OutputSink, *paths: str) -> bool:
        """Restore these outputs (by default all that dvc.lock names); return whether all came.

        They come from the cache, or from the remote if there is one.
        """
        if self.remote_urls():
            self._shown(sink, "fetch", *paths, bars=True)
        return self._shown(sink, "checkout", "--force", *paths, bars=True).code == 0

    def use_storage_of(self, other: "Workspace") -> None:
        """Share another workspace's DVC cache and remotes, even those added since this commit."""
        config, there = ConfigObj(), other.root / ".dvc"
        for name in ("config", "config.local"):
            config.merge(ConfigObj(str(there / name)))
        for section in config.sections:
            url = config[section].get("url")
            if section.startswith(("'remote ", "remote ")) and "://" not in url:
                config[section]["url"] = str((there / url).resolve())
        config.setdefault("cache", {})["dir"] = dvc.ask(other.root, "cache", "dir").strip()
        config.filename = str(self.root / ".dvc" / "config.local")
        config.write()

    def lock_digest(self) -> str:
        """Return the SHA-256 of dvc.lock: the identity of everything the pipeline made."""
        try:
            return hashlib.sha256((self.root / "dvc.lock").read_bytes()).hexdigest()
        except FileNotFoundError as error:
            raise ArtifactError(
                f"{self.root / 'dvc.lock'} is missing: nothing built yet; run `firstkd run`"
            ) from error

    def lock(self) -> dict[str, Any]:
        """Return dvc.lock's entry for each stage."""
        stages: dict[str, Any] = YAML(typ="safe", pure=True).load(self.root / "dvc.lock")["stages"]
        return stages

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the workspace for one retraining; raises WorkspaceBusyError if it is already held.

        The system releases the lock when its process ends, however it ends.
        """
        path = self.root / "logs" / "retrain.lock"
        path.parent.mkdir(exist_ok=True)
        with path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise WorkspaceBusyError(
                    f"a retraining is already running in {self.root.resolve()} "
                    f"(process {file.read().strip()}); wait for it or stop it"
                ) from error
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield

    def _shown(self, sink: OutputSink, *arguments: str, bars: bool = False) -> Shown:
        return Shown(self.root, self.stop_seconds, sink, *arguments, bars=bars)
