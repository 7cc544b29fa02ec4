"""Does the memory of capture and distillation grow with the number of examples?

Each size runs in a separate process on a random model of two layers, so that any growth with the
examples shows. Prints one JSON line: peak memory at 2,000 and at 16,000 questions, and the growth
between the two per 1,000 questions.

Run as  python -m benchmarks.memory
"""

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

SIZES = (2_000, 16_000)


def measure(task: str, size: int) -> float:
    """Return the peak memory in MB of one task, in a separate process."""
    command = [sys.executable, "-m", "benchmarks.memory", task, str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def run(task: str, size: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from benchmarks.models import CAPTURE, MACHINE, SETTINGS
    from firstkd.data.prompts import Question
    from firstkd.recalibration.none import Identity
    from firstkd.signals.capture import Capture
    from firstkd.signals.choices import Choices
    from firstkd.signals.select import TopK
    from firstkd.signals.store import SignalStore
    from firstkd.signals.target import Stored
    from firstkd.signals.tokens import Tokens
    from firstkd.terms.choice_kl import ChoiceKl
    from firstkd.terms.sparse_kl import SparseKl
    from firstkd.train.distributed import Ranks
    from firstkd.train.loop import train
    from firstkd.train.plan import training_plan
    from firstkd.train.player import Player

    config = LlamaConfig(
        vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    questions = [
        Question(str(i), [1 + i % 500] * 20, [[3], [4, 5], [6, 7 + i % 9]], i % 3)
        for i in range(size)
    ]
    settings = CAPTURE.model_copy(update={"micro_batch_size": 64, "shard_examples": 500})
    tokens = Tokens(kind="tokens", of="teacher", select=TopK(kind="top_k", k=5))
    sources: dict[str, Stored] = {}
    with tempfile.TemporaryDirectory() as name:
        for signal in (Choices(kind="choices", of="teacher"), tokens):
            folder = Path(name) / signal.kind
            capture = Capture(signal, config.vocab_size, settings, Ranks())
            capture.write(model, questions, range(size), folder)
            capture.finish(folder, identity={})
            if task == "distill":
                store = SignalStore(folder)
                places = store.positions(range(size), [question.id for question in questions])
                sources[signal.kind] = Stored(signal, store, Identity(), places)
        if task == "distill":
            learn = {
                "choices": ChoiceKl.model_validate({"kind": "choice_kl", "from": "choices"}),
                "tokens": SparseKl.model_validate({"kind": "sparse_kl", "from": "tokens"}),
            }
            training = SETTINGS.model_copy(update={"micro_batch_size": 128, "precision": "fp32"})
            plan = training_plan(questions, training, seed=0)
            live = Path(name) / "stage/curve.jsonl"
            train(Player(model, learn, sources), questions, plan, training, MACHINE, live)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    found = {}
    for task in ("capture", "distill"):
        small, large = (measure(task, size) for size in SIZES)
        found[f"{task}_mb_at_{SIZES[0]}"] = round(small)
        found[f"{task}_mb_at_{SIZES[1]}"] = round(large)
        growth = (large - small) / (SIZES[1] - SIZES[0]) * 1000
        found[f"{task}_mb_per_1000_questions"] = round(growth, 2)
    print(json.dumps(found))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        run(sys.argv[1], int(sys.argv[2]))
    else:
        main()
