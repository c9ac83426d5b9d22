"""Bi-Real-style ResNets of Larq layers, converted for and run by Larq Compute Engine.

Its wheels want an old Python and TensorFlow, so they have an environment of their own; RECIPE

Blocks have two shortcuts, as this project's have, but no PReLU, and padding is with ones, which
Larq Compute Engine does fastest. Its interpreter takes the images of a batch one by one.
"""
