"""How signals of any kind are captured."""

from firstkd.section import Positive, Precision, Section


class CaptureSettings(Section):
    precision: Precision
    """Precision of the teacher's weights in the pass; kept values are computed in float32."""
    micro_batch_size: Positive
    """Examples per forward pass, at most."""
    micro_batch_tokens: Positive
    """Tokens per forward pass, at most, padding included."""
    shard_examples: Positive
    """Examples per file of a store: their records must fit in memory."""
