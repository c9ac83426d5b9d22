"""A report on runs: their curves, the distribution of their weights, and the theory."""
