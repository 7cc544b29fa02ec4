"""Signals: what is known about a teacher, captured, stored and read back."""
