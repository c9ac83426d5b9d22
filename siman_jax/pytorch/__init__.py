"""PyTorch's checkpoints: names, bits, and the file itself."""
