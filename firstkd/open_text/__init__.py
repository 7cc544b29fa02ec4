"""Answers in a model's own words: how they are written, judged, and how sure they are."""
