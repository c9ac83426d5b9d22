"""Reading PyTorch checkpoints: names, bits, and the file itself."""
