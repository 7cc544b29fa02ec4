"""The calibration questions asked between training steps, if something adapts to the answers."""

from pathlib import Path
from typing import Any

from firstkd.data.examples import read_examples
from firstkd.data.prompts import encode
from firstkd.settings import Settings
from firstkd.train.rounds import Rounds
from firstkd.train.settings import TrainingSettings
from tasks.layout import prepared


def calibration_rounds(
    root: Path, settings: Settings, training: TrainingSettings, tokenizer: Any
) -> Rounds:
    examples = read_examples(prepared(root, "calibration"))
    asked = encode([e for e in examples if e.choices], tokenizer, settings.prompt)
    return Rounds(asked, training.micro_batch_size, training.micro_batch_tokens)
