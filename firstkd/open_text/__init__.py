"""Answers in a model's own words: writing them, judging them, and how sure the model is."""
