"""Inference on bits: +-1 packed 32 to a word, multiplied by xor and population count."""
