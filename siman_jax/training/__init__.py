"""Training steps and epochs: the optimizer, the loss, and what a config describes."""
