"""1-bit convolutional networks by sign-to-magnitude binarization, in JAX and Flax."""
