"""Which of the training examples a model learns from, if `keep` chooses among them."""

from collections.abc import Sequence
from pathlib import Path

from firstkd.data.examples import Example
from firstkd.signals.difference import Difference
from firstkd.signals.store import SignalStore
from tasks.layout import signal_folder


def chosen(root: Path, keep: Difference, examples: Sequence[Example]) -> list[Example]:
    """Raises ArtifactError as `Difference.kept` does."""
    large, small = (SignalStore(signal_folder(root, name, "train")) for name in keep.signals)
    return keep.kept(examples, large, small)
