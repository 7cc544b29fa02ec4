"""Recalibrations of a teacher's confidence."""
