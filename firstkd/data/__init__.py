"""Examples: read, split, rendered as prompts, packed into batches."""
