"""How a model starts, before it learns anything."""
