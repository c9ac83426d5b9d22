"""A network as a list of operations with their weights: traced, simplified, run and proven."""
