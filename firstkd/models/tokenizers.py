"""What ids mean: how many there are, and whether two tokenizers mean the same by one."""

import hashlib
import json
from pathlib import Path
from typing import Any


def vocabulary_digest(tokenizer: Any) -> str:
    """Return a hash of every token and its id: equal where ids can be compared.

    Not of the files, which differ in form from one release of a library to the next.
    """
    pairs = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def vocabulary_size(folder: Path, tokenizer: Any) -> int:
    """Return how many tokens the model in a folder can say.

    Its head may have more rows, which pad it to a round number, and its tokenizer more tokens.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return min(len(tokenizer), int(config["vocab_size"]))
