"""FIRST: distil the calibrated top-k knowledge of a large language model into a small one."""
