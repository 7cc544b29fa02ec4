"""Whether two tokenizers mean the same by an id."""

import hashlib
import json
from typing import Any


def vocabulary_digest(tokenizer: Any) -> str:
    """Return a hash of every token and its id: equal where ids can be compared.

    Not of the files, which differ in form from one release of a library to the next.
    """
    pairs = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()
