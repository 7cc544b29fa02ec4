"""Settings of captured knowledge."""

from typing import Annotated, Literal

from pydantic import Field

from firstkd.section import Positive, Section, Share


class ExtractSettings(Section):
    top_k: Annotated[int, Field(ge=1, le=64)]
    tail_nodes: Literal[0, 8]
    """Values kept of each token's tail (2 bytes each), with which it can be tempered exactly over
    the whole vocabulary; 0 for none."""
    micro_batch_size: Positive
    micro_batch_tokens: Positive
    """Tokens per forward pass, at most, padding included."""
    shard_examples: Positive
    """Examples per file of the knowledge store: so much knowledge memory has to hold."""
    processes: Positive
    """On this host, each with the whole teacher; they share out the files, not a result."""
    min_top_k_mass: Share
    """Of the teacher's probability: where the top-k hold less on average, extract warns."""
