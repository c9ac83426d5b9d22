"""Weights of binary layers: the distributions that fit them, and the bits that suit them."""
