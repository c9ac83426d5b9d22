"""A data source outside the package, as a user would write it."""

import io
from dataclasses import replace

import numpy as np
from PIL import Image

from siman_jax.data.dataset import Dataset, Record, Split


def stripes(config):
    """Images of horizontal and vertical stripes."""
    rng = np.random.default_rng(0)

    def split(n):
        labels = np.arange(n, dtype=np.int32) % 2
        lines = rng.integers(0, 2, (n, config.image_size, 1, 1), np.uint8) * 255
        images = np.broadcast_to(lines, (n, config.image_size, config.image_size, 1))
        across = images.swapaxes(1, 2)
        return Split(np.where(labels[:, None, None, None] == 0, images, across), labels)

    return Dataset(split(512), split(100), ("horizontal", "vertical"))


def nothing(config):
    return None


def no_config():
    return None


def changed(**fields):
    """A source that gives other images, or other labels, in the test split."""

    def source(config):
        data = stripes(config)
        return replace(data, test=replace(data.test, **fields))

    return source


floats = changed(images=np.zeros((100, 8, 8, 1), np.float32))
larger = changed(images=np.zeros((100, 9, 9, 1), np.uint8))
fewer = changed(labels=np.zeros(99, np.int32))
fractions = changed(labels=np.zeros(100))
beyond = changed(labels=np.full(100, 2, np.int32))
negative = changed(labels=np.full(100, -1, np.int32))


def labels_of(dtype):
    """A source whose labels have another dtype than int32."""

    def source(config):
        data = stripes(config)
        train, test = (
            replace(split, labels=split.labels.astype(dtype)) for split in (data.train, data.test)
        )
        return replace(data, train=train, test=test)

    return source


bytes_as_labels, unsigned_labels = labels_of(np.uint8), labels_of(np.uint64)


class Encoded:
    """Images as PNG files in memory; one of them has another label."""

    def __init__(self, split, label=None):
        self.split, self.label = split, label

    def __len__(self):
        return len(self.split)

    def __getitem__(self, index):
        file = io.BytesIO()
        Image.fromarray(self.split.images[index, ..., 0]).save(file, "PNG")
        label = self.split.labels[index] if self.label is None or index != 7 else self.label
        return Record(file.getvalue(), label, f"image {index}")


def encoded(config):
    data = stripes(config)
    return replace(data, train=Encoded(data.train), test=Encoded(data.test))


def encoded_to_train(config):
    return replace(stripes(config), train=encoded(config).train)


def encoded_to_test(config):
    return replace(stripes(config), test=encoded(config).test)


def encoded_beyond(config):
    data = stripes(config)
    return replace(data, train=Encoded(data.train), test=Encoded(data.test, 2))


def encoded_negative(config):
    data = stripes(config)
    return replace(data, train=Encoded(data.train, -1), test=Encoded(data.test))
