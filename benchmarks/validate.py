"""How long the stage validate takes for 50,000 examples, and where the time goes.

Prints one JSON line. Run as  python -m benchmarks.validate [MODEL_FOLDER]
(default: data/model/base, for its tokenizer).
"""

import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from firstkd.data.examples import Example, content_id, read_examples, write_examples
from firstkd.data.frames import flat_frames
from firstkd.data.settings import PromptSettings, SplitSizes, ValidateSettings
from tasks.validate import load_tokenizer, token_lengths

SIZES = {"train": 30_000, "calibration": 7_500, "test": 12_500}
LIMITS = ValidateSettings(
    min_examples=SplitSizes(train=1, calibration=1, test=1),
    max_prompt_tokens=500,
    max_response_tokens=100,
    min_answer_share=0.05,
)


def examples(split: str, count: int, seed: int) -> Iterator[Example]:
    """Yield questions about as long as CommonsenseQA's, with five choices each."""
    draw = random.Random(seed)
    words = ["river", "market", "where", "people", "often", "keep", "their", "small", "garden"]
    for number in range(count):
        prompt = f"Question {split} {number}: {' '.join(draw.choices(words, k=15))}?"
        choices = tuple(f"{draw.choice(words)} {place} {draw.choice(words)}" for place in range(5))
        answer = draw.randrange(5)
        yield Example(
            content_id("made", prompt, choices),
            prompt,
            choices[answer],
            choices,
            answer,
            "made",
            split,
        )


def main(model: Path) -> None:
    seconds: dict[str, float] = {}
    started = time.perf_counter()

    def lap(name: str) -> None:
        seconds[name] = round(time.perf_counter() - started - sum(seconds.values()), 2)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed, (split, count) in enumerate(SIZES.items()):
            write_examples(folder / f"{split}.parquet", examples(split, count, seed))
        started = time.perf_counter()
        splits = {split: read_examples(folder / f"{split}.parquet") for split in SIZES}
        lap("read")
        lengths = token_lengths(
            splits,
            {"model": load_tokenizer(model)},
            PromptSettings(format="cloze", max_length=256),
        )
        lap("tokens")
        frames = flat_frames(splits, lengths)
        lap("frames")
        from tasks.expectations import run

        lap("gx_import")
        outcomes = run(frames, LIMITS, folder / "docs")
        lap("gx")
    assert all(each["success"] for found in outcomes.values() for each in found.values())
    total = sum(seconds.values())
    result = {
        "benchmark": "validate",
        "examples": sum(SIZES.values()),
        "seconds": round(total, 2),
        "gx_share": round((seconds["gx"] + seconds["gx_import"]) / total, 3),
        **{f"seconds_{part}": value for part, value in seconds.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "data/model/base"))
