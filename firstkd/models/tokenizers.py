"""Whether an id means the same to two tokenizers."""

import hashlib
import json
from typing import Any


def vocabulary_digest(tokenizer: Any) -> str:
    """Return a hash of every token and its id: if equal, ids can be compared.

    It does not hash the files, whose form differs between releases of a library.
    """
    pairs = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()
