"""The pipeline's stages, one module each: files in, files out. Run as `python -m tasks.NAME`."""
