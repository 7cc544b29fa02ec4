"""What a live teacher and a term on stored hidden states add to a training step.

Uses random models of SmolLM2-135M's shape, a student of 20 layers and a teacher of 30, on questions
with five choices. Each ratio compares two steps that differ in only one thing:

- `live_vs_forward`: what a live frozen teacher adds to a step that learns the same choices from a
  store, ÷ the teacher's own forward pass with its head;
- `stored_states_vs_step`: what the term `hidden` on stored states adds, ÷ the step without it.

Seconds are processor time of the fastest of several steps, so a busy machine matters little. Prints
one JSON line.

Run as  python -m benchmarks.live
"""

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.models import CAPTURE, random_model
from firstkd.data.packing import pack
from firstkd.data.prompts import Question
from firstkd.models.scoring import ResponseScorer
from firstkd.models.view import View
from firstkd.recalibration.none import Identity
from firstkd.reproducibility import deterministic
from firstkd.signals.capture import Capture
from firstkd.signals.choices import Choices
from firstkd.signals.hidden_states import HiddenStates
from firstkd.signals.live import Watched
from firstkd.signals.store import SignalStore
from firstkd.signals.target import Source, Stored, StoredStates
from firstkd.terms.base import Term
from firstkd.terms.choice_kl import ChoiceKl
from firstkd.terms.hidden import Hidden
from firstkd.train.distributed import Ranks
from firstkd.train.player import Player

QUESTIONS, PROMPT, CHOICES, RESPONSE = 32, 24, 5, 3
"""Questions per step, tokens per prompt, choices per question, and tokens per choice."""
STEPS = 6
CHOICE_KL = ChoiceKl.model_validate({"kind": "choice_kl", "from": "choices", "recalibrate": "none"})
HIDDEN = Hidden.model_validate({"kind": "hidden", "from": "states"})


def questions_of(vocabulary: int) -> list[Question]:
    draw = torch.Generator().manual_seed(0)
    length = PROMPT + CHOICES * RESPONSE
    rows = torch.randint(3, vocabulary, (QUESTIONS, length), generator=draw).tolist()
    return [
        Question(
            str(number),
            row[:PROMPT],
            [row[i : i + RESPONSE] for i in range(PROMPT, length, RESPONSE)],
            number % CHOICES,
        )
        for number, row in enumerate(rows)
    ]


def stored(teacher: Any, questions: list[Question], depth: int, folder: Path) -> dict[str, Source]:
    """Capture the signals that a student of this depth learns from, and open them."""
    choices = Choices(kind="choices", of="t")
    states = HiddenStates(kind="hidden_states", of="t", live=False)
    stores = []
    for signal in (choices, states):
        where, width = folder / signal.kind, teacher.config.hidden_size
        run = Capture(signal, teacher.config.vocab_size, CAPTURE, Ranks(), width)
        run.write(teacher, questions, range(len(questions)), where)
        run.finish(where, {})
        stores.append(SignalStore(where))
    positions = torch.arange(len(questions))
    return {
        "choices": Stored(choices, stores[0], Identity(), positions),
        "states": StoredStates(stores[1], positions, depth),
    }


def fastest(work: Callable[[], object]) -> float:
    """Seconds of processor time."""
    best = float("inf")
    for _ in range(STEPS):
        started = time.process_time()
        work()
        best = min(best, time.process_time() - started)
    return best


def step(
    student: Any,
    questions: list[Question],
    learn: Mapping[str, Term],
    sources: Mapping[str, Source],
    places: tuple[int, ...] = (),
) -> float:
    """Seconds of a whole training step."""
    beside = {name: nn.ModuleList() for name in learn}
    player = Player(student, learn, sources, beside, places).train()
    optimizer = torch.optim.AdamW(player.parameters(), lr=1e-5, fused=True)

    def work() -> None:
        batch = pack(questions, range(len(questions)))  # a new batch: no pass is shared
        sums = player(batch, player.targets(batch))
        loss = sum((found.total / max(1, found.units) for found in sums.values()), torch.zeros(()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return fastest(work)


def measured(student: Any, teacher: Any, folder: Path) -> dict[str, float]:
    questions = questions_of(teacher.config.vocab_size)
    depth = student.config.num_hidden_layers
    sources = stored(teacher, questions, depth, folder)
    choices = {"choices": sources["choices"]}
    live = {"choices": Choices(kind="choices", of="t", live=True).source(Watched(teacher, ()), ())}
    scorer = ResponseScorer(teacher, exact=True).eval()

    @torch.no_grad()
    def forward() -> None:
        _ = View(scorer, pack(questions, range(len(questions)))).choice_scores_BC

    alone, both = {"choices": CHOICE_KL}, {"choices": CHOICE_KL, "states": HIDDEN}
    from_store = step(student, questions, alone, choices)
    from_teacher = step(student, questions, alone, live)
    with_states = step(student, questions, both, sources, (depth,))
    pass_of_teacher = fastest(forward)
    return {
        "live_vs_forward": (from_teacher - from_store) / pass_of_teacher,
        "stored_states_vs_step": (with_states - from_store) / from_store,
        "step_seconds": from_store,
        "forward_seconds": pass_of_teacher,
    }


def main() -> None:
    deterministic(seed=0, threads=torch.get_num_threads())
    with tempfile.TemporaryDirectory() as folder:
        found = measured(random_model(20), random_model(30).eval(), Path(folder))
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))


if __name__ == "__main__":
    main()
