"""Draws docs/magnitude.png: the bits of the same weights, by sign and by magnitude.

python docs/draw_magnitude.py
"""

from pathlib import Path

import jax
import numpy as np
from matplotlib import pyplot as plt

from siman_jax.rules.magnitude_bits import half_half_bits

ONE, ZERO = "#3949ab", "#f2a33c"


def main() -> None:
    """Draw both histograms."""
    weights = jax.random.laplace(jax.random.key(0), (100_000, 1))
    columns = {
        "By sign": (weights > 0, "below 0", "above 0"),
        "By magnitude (SiMaN)": (
            half_half_bits(weights) == 1,
            "the smaller half",
            "the larger half",
        ),
    }
    plt.rcParams.update({"font.size": 11, "font.family": "DejaVu Sans"})
    figure, axes = plt.subplots(1, 2, figsize=(9, 2.7), layout="constrained", sharey=True)
    edges = np.arange(-42, 43) * np.log(2) / 6  # one edge is at the median of magnitudes
    for panel, (title, (ones, zero_text, one_text)) in zip(axes, columns.items(), strict=True):
        parts = [np.asarray(weights[~ones]), np.asarray(weights[ones])]
        panel.hist(
            parts,
            edges,
            stacked=True,
            color=[ZERO, ONE],
            label=[f"{zero_text}: bit 0", f"{one_text}: bit 1"],
        )
        panel.set(title=title, xlabel="weight", xlim=(-5, 5), yticks=[])
        panel.spines[["left", "right", "top"]].set_visible(False)
        panel.margins(y=0.3)
        panel.legend(frameon=False, loc="upper center", ncols=2)
    figure.savefig(Path(__file__).parent / "magnitude.png", dpi=110)


if __name__ == "__main__":
    main()
