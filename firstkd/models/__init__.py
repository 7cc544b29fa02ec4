"""Causal language models: load, prune, tune, and score responses."""
