"""Pods as hosts: an indexed Job built on the user's pod, created and awaited with kubectl."""

import sys
from pathlib import Path
from typing import Any, ClassVar, Literal

from ruamel.yaml import YAML

from firstkd.errors import ConfigError
from firstkd.files import write_json
from firstkd.launchers.base import Job
from firstkd.launchers.host import command_line
from firstkd.launchers.remote import Reach, Remote
from firstkd.section import Port, Positive

RANK = "$JOB_COMPLETION_INDEX"
"""Kubernetes sets it in each pod."""


class Kubernetes(Remote):
    kind: Literal["kubernetes"]
    stops_by_signal: ClassVar[bool] = True

    hosts: Positive
    """Number of pods."""
    pod: Path = Path("infra/kubernetes.yaml")
    """A PodTemplate; its first container gets the stage's command."""
    port: Port = 29400
    """Port on the first pod where they meet; unauthenticated, so the network must be trusted."""

    @property
    def number_of_hosts(self) -> int:
        return self.hosts

    def commands(self, job: Job, place: Path) -> list[Reach]:
        manifest = place.with_suffix(".json")
        write_json(manifest, self.manifest(job, place.name))
        follow = [sys.executable, "-m", "firstkd.launchers.pods", str(manifest)]
        return [Reach("the Kubernetes Job", range(self.hosts), follow)]

    def manifest(self, job: Job, launch: str) -> dict[str, Any]:
        """Return the Job of a launch, and the Service that gives its pods names."""
        template = self._template()
        spec = template["template"]["spec"]
        first = f"{launch}-0.{launch}"
        line = command_line(job, launch, self.hosts, RANK, first, self.port, python="python")
        spec |= {"subdomain": launch, "restartPolicy": "Never"}
        spec["containers"][0]["command"] = ["sh", "-c", line]
        metadata = {"name": launch}
        if namespace := template.get("metadata", {}).get("namespace"):
            metadata["namespace"] = namespace
        return {"apiVersion": "v1", "kind": "List", "items": [
            _service(metadata), _job(metadata, self.hosts, template["template"])
        ]}  # fmt: skip

    def _template(self) -> Any:
        try:
            found = YAML(typ="safe", pure=True).load(self.pod)
        except FileNotFoundError as error:
            raise ConfigError(f"machine.launcher.pod: there is no {self.pod}") from error
        if not isinstance(found, dict) or found.get("kind") != "PodTemplate":
            raise ConfigError(
                f"machine.launcher.pod: {self.pod} is not a PodTemplate; for an example, see "
                "infra/kubernetes.yaml"
            )
        return found


def _service(metadata: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "clusterIP": "None",  # DNS names for the pods themselves
            "publishNotReadyAddresses": True,  # they meet before they are ready
            "selector": {"job-name": metadata["name"]},
        },
    }


def _job(metadata: dict[str, str], hosts: int, pod: Any) -> dict[str, Any]:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "completionMode": "Indexed",
            "completions": hosts,
            "parallelism": hosts,
            "backoffLimit": 0,  # one host's failure ends all; the flow repeats the stage
            "template": pod,
        },
    }
