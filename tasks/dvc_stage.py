"""A stage as it is in dvc.yaml, and what several kinds of stages depend on."""

from dataclasses import dataclass
from typing import Any

EVALUATE_PARAMS = [
    *("evaluate.bootstrap_samples", "calibrate.criterion", "calibrate.max_temperature"),
    *("prompt", "runtime", "serve.policy"),
]
"""Settings that decide what is measured, whatever runtime scores the questions."""


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
