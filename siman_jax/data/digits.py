"""Handwritten digits: 1,797 images of 8x8 pixels, included in scikit-learn."""

import numpy as np
from ml_collections import ConfigDict

from siman_jax.data.dataset import Dataset, Split

_TEST_EXAMPLES = 360


def load(config: ConfigDict) -> Dataset:
    """Load 1,437 training and 360 test images, `[8, 8, 1]`; the split is always the same."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int32)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=_TEST_EXAMPLES, random_state=0, stratify=labels
    )
    return Dataset(
        Split(train_images, train_labels),
        Split(test_images, test_labels),
        class_names(config),
    )


def class_names(config: ConfigDict) -> tuple[str, ...]:
    """Return the names of the ten digits."""
    del config
    return tuple("0123456789")
