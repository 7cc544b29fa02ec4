"""How signals are captured, whatever they are."""

from firstkd.section import Positive, Precision, Section


class CaptureSettings(Section):
    precision: Precision
    """Precision of the teacher's weights in the pass; what is kept is computed in float32."""
    micro_batch_size: Positive
    """Examples per forward pass, at most."""
    micro_batch_tokens: Positive
    """Tokens per forward pass, at most, padding included."""
    shard_examples: Positive
    """Examples per file of a store: memory has to hold their records."""
