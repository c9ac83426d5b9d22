"""Comparisons of arrays that several tests share."""

import numpy as np


def relative_error(found, expected):
    """Return the largest difference relative to the largest magnitude."""
    return np.max(np.abs(found - expected)) / np.max(np.abs(expected))


def assert_close(found, expected, tolerance):
    """Compare arrays relative to the largest magnitude."""
    assert found.dtype == expected.dtype
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()
