"""The one rule by which pages show numbers."""

from collections.abc import Mapping


def number(value: float) -> str:
    """Show three digits: two decimals below 10, one below 100, and none from there on.

    Integers keep all their digits, and thousands are separated from 10,000 on.

    >>> [number(x) for x in (0.7642, 8.749, 83.412, 2084.3, 10656.1, 12)]
    ['0.76', '8.75', '83.4', '2084', '10,656', '12']
    """
    decimals = 0 if isinstance(value, int) or round(value, 1) >= 100 else 1
    if not isinstance(value, int) and round(value, 2) < 10:
        decimals = 2
    shown = f"{value:,.{decimals}f}"
    return shown if len(shown.partition(".")[0]) > len("9,999") else shown.replace(",", "")


def spread(summary: Mapping[str, float], scale: float = 1) -> str:
    """Show a mean and its standard deviation over seeds, both with one decimal.

    >>> spread({"mean": 34.812, "std": 9.64})
    '34.8 ± 9.6'
    """
    return f"{scale * summary['mean']:.1f} ± {scale * summary['std']:.1f}"
