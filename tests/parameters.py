"""Parameters that several tests share."""

import pytest


def first_quickly(names):
    """Parameters of a test: the first as it is, the others marked as slow."""
    first, *others = names
    return [first, *(pytest.param(name, marks=pytest.mark.slow) for name in others)]
