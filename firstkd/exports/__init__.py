"""A student as one file for a runtime without torch, with its calibration inside."""
