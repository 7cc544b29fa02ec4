"""Ensembles: several models, or several draws of one, that answer together."""
