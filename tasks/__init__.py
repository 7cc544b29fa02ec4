"""The pipeline's stages, one module each: files in, files out. Run as `python -m tasks.NAME`."""

import gc

# Importing torch and transformers creates a million long-lived objects; at the default threshold
# of 700, scanning them again and again takes a third of the import time.
gc.set_threshold(100_000, 50, 50)
