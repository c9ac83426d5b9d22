"""A report on runs: their curves, what their weights look like, and the theory beside it."""
