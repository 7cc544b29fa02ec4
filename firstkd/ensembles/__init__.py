"""Several models, or several guesses at one, that answer together."""
