"""Parameters that several tests share."""

import pytest


def first_quickly(names):
    """Return parameters of a test, with all but the first marked as slow."""
    first, *others = names
    return [first, *(pytest.param(name, marks=pytest.mark.slow) for name in others)]
