"""Run a model as a placement has it, in memory that is watched.

Run as  python -m tests.firstkd.models.placed MODEL TINY OUT PRECISION PLACEMENT
or likewise by torchrun, as several processes. Writes to OUT the scores of some questions, texts,
and the peak of each process's anonymous memory: pages of the mapped files are not in it.
"""

import json
import sys
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from firstkd.data.prompts import Question
from firstkd.models.scoring import score_questions
from firstkd.open_text.decoding import Draw, decode
from firstkd.section import Precision
from firstkd.train.distributed import join_ranks, leave_ranks
from firstkd.train.settings import MachineSettings
from tests.firstkd.train.loading import Peak, anonymous_bytes

QUESTIONS = [
    Question(str(i), [4 + i % 7, *range(10, 14 + i % 3)], [[50 + i, 60], [70 + i]], 0)
    for i in range(12)
]


def run(model: PreTrainedModel, times: int) -> tuple[torch.Tensor, list[int]]:
    """Return the scores of the questions, and what continues their prompts."""
    torch.set_num_threads(1)
    draws = [Draw(question.prompt, 0, 0, 0) for question in QUESTIONS]
    for _ in range(times):
        scores = score_questions(model, QUESTIONS, 5)
        texts = decode(model, draws, {0}, 2, 12, 1000)
    return scores, [token for text in texts for token in text.ids]


def main(folder: Path, tiny: Path, out: Path, precision: Precision, placement: object) -> None:
    ranks = join_ranks()
    machine = MachineSettings.model_validate(
        {
            "processes": 2,
            "zero_stage": 0,
            "cpu_offload": False,
            "gradient_checkpointing": False,
            "checkpoint_steps": None,
            "placement": placement,
        }
    )
    with machine.placement.running(tiny, precision, ranks) as model:
        run(model, 1)  # loads the modules, which do not count
    before, peak = anonymous_bytes(), Peak(daemon=True)
    peak.start()
    with machine.placement.running(folder, precision, ranks) as model:
        # not equally often
        scores, text = run(model, 1 + ranks.rank)
    peak.over.set()
    peak.join()
    (out / f"peak-{ranks.rank}").write_text(str(peak.bytes - before))
    save_file({"scores": scores, "text": torch.tensor(text)}, out / f"{ranks.rank}.safetensors")


if __name__ == "__main__":
    *folders, precision, placement = sys.argv[1:]
    main(*map(Path, folders), cast(Precision, precision), json.loads(placement))
    leave_ranks()
