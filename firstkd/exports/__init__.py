"""Exports of a student: one file, calibration included, for a runtime without torch."""
