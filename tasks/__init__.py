"""The pipeline's stages, one module each: files in, files out. Run as `python -m tasks.NAME`."""

import gc

# Importing torch and transformers makes a million objects that stay; at the usual threshold of
# 700, looking through them again and again takes a third of the imports' time.
gc.set_threshold(100_000, 50, 50)
