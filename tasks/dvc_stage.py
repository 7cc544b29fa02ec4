"""One stage of dvc.yaml."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Stage:
    name: str
    desc: str
    command: str
    params: list[str]
    code: list[str]
    inputs: list[str]
    outputs: list[str]

    def entry(self) -> dict[str, Any]:
        return {
            "desc": self.desc,
            "cmd": self.command,
            "params": sorted(self.params),
            "deps": [*self.code, *dict.fromkeys(self.inputs)],
            "outs": self.outputs,
        }
