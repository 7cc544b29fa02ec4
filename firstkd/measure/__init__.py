"""How good, and how honest: metrics, comparisons, figures."""
