"""How signals are captured, whatever they are."""

from firstkd.section import Positive, Precision, Section


class CaptureSettings(Section):
    precision: Precision
    """Of the teacher's weights in the forward pass; what is kept is computed in float32."""
    micro_batch_size: Positive
    """Examples per forward pass, at most."""
    micro_batch_tokens: Positive
    """Tokens per forward pass, at most, padding included."""
    shard_examples: Positive
    """Examples per file of a store: memory has to hold the records of so many."""
