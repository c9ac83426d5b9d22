"""What networks of native operations compute, by NumPy in float64, and random ones."""

import itertools
import math

import numpy as np

from siman_jax.native.network import Operation

# Differences of this size are rounding; bits whose threshold is nearer would be left to chance.
NEAR = 3e-6


class Undecided(ValueError):  # noqa: N818 -- no error: rounding decides a bit
    """A number is so near its threshold that rounding decides the bit."""


def unpacked(words, channels):
    """Return +-1 `[..., channels, out]` from words `[..., words, out]`."""
    places = np.arange(channels)
    bits = words[..., places // 32, :] >> (places % 32)[:, None].astype(np.uint32) & 1
    return np.where(bits, 1.0, -1.0)


def packed(signs):
    """Return words `[..., words, out]` from +-1 `[..., channels, out]`."""
    *outer, channels, out = signs.shape
    words = np.zeros((*outer, -(-channels // 32), out), np.uint32)
    for channel in range(channels):
        bit = (signs[..., channel, :] > 0).astype(np.uint32)
        words[..., channel // 32, :] |= bit << np.uint32(channel % 32)
    return words


def windows(x, window, strides, padding, dilation=(1, 1), value=0.0):
    """Return all windows of x `[batch, height, width, c]`: `[batch, rows, columns, taps, c]`."""
    top, bottom, left, right = padding
    x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=value)
    rows, columns = (
        (size - (taps - 1) * apart - 1) // step + 1
        for size, taps, apart, step in zip(x.shape[1:3], window, dilation, strides, strict=True)
    )
    taps = [
        x[
            :,
            down * dilation[0] :: strides[0],
            across * dilation[1] :: strides[1],
        ][:, :rows, :columns]
        for down, across in itertools.product(*map(range, window))
    ]
    return np.stack(taps, axis=3)


def conv(x, kernel, strides, padding, dilation=(1, 1), groups=1):
    height, width, channels, out = kernel.shape
    seen = windows(x, (height, width), strides, padding, dilation)
    kernel = kernel.reshape(-1, channels, out)
    parts = [
        np.einsum(
            "nrctx,txo->nrco",
            seen[..., group * channels : (group + 1) * channels],
            kernel[..., group * (out // groups) : (group + 1) * (out // groups)],
            optimize=True,
        )
        for group in range(groups)
    ]
    return np.concatenate(parts, axis=-1)


def signs(x, threshold):
    if threshold is None:
        threshold = x.mean(tuple(range(1, x.ndim)), keepdims=True)
    if (abs(x - threshold) <= NEAR * max(1.0, abs(x).max())).any() and not _whole(x, threshold):
        raise Undecided
    return np.where(x >= threshold, 1.0, -1.0)


def _whole(x, threshold):
    return (x == np.round(x)).all() and (threshold == np.round(threshold)).all()


def computed(operation, operands, images):
    """Compute one operation for a batch."""
    kind, _, numbers, weights = operation
    numbers = list(numbers)
    x = operands[0] if operands else None
    match kind:
        case "images":
            return images.reshape(-1, *numbers)
        case "constant":
            return np.broadcast_to(np.float64(weights[0]), (len(images), *weights[0].shape))
        case "conv":
            return conv(x, weights[0], numbers[:2], numbers[2:6], numbers[6:8], numbers[8])
        case "binary_conv":
            return conv(x, unpacked(weights[0], x.shape[-1]), numbers[:2], numbers[2:])
        case "dense":
            return x @ np.float64(weights[0])
        case "binary_dense":
            return x @ unpacked(weights[0], x.shape[-1])
        case "max_pool":
            return windows(x, numbers[:2], numbers[2:4], numbers[4:], value=-np.inf).max(axis=3)
        case "sum_pool":
            return windows(x, numbers[:2], numbers[2:4], numbers[4:]).sum(axis=3)
        case "sum":
            return x.sum(tuple(axis + 1 for axis in numbers))
        case "max":
            return x.max(tuple(axis + 1 for axis in numbers))
        case "affine":
            scale, shift = weights
            return x * (1 if scale is None else scale) + (0 if shift is None else shift)
        case "prelu":
            return np.where(x > 0, x, weights[0] * x)
        case "clip":
            return np.clip(x, *weights[0])
        case "sigmoid":
            return 1 / (1 + np.exp(-x))
        case "tanh":
            return np.tanh(x)
        case "softmax":
            powers = np.exp(x - x.max(axis=-1, keepdims=True))
            return powers / powers.sum(axis=-1, keepdims=True)
        case "signs":
            return signs(x, weights[0])
        case "add":
            return x + operands[1]
        case "multiply":
            return x * operands[1]
        case "concatenate":
            return np.concatenate(operands, axis=numbers[0] + 1)
        case "pad":
            axes = x.ndim - 1
            pads = list(zip(numbers[:axes], numbers[axes:], strict=True))
            return np.pad(x, [(0, 0), *pads], constant_values=weights[0][0])
        case "slice":
            axes = x.ndim - 1
            parts = zip(numbers[:axes], numbers[axes : 2 * axes], numbers[2 * axes :], strict=True)
            return x[(slice(None), *(slice(*part) for part in parts))]
        case "reshape":
            return x.reshape(len(x), *numbers)
        case "transpose":
            return x.transpose(0, *(axis + 1 for axis in numbers))
        case "broadcast":
            return np.broadcast_to(x, (len(x), *numbers))
    raise ValueError(kind)


def results(operations, images):
    """Compute all operations for a batch, in float64."""
    found = []
    for operation in operations:
        operands = [found[place] for place in operation.inputs]
        found.append(computed(operation, operands, np.float64(images)))
    return found


class Builder:
    """A list of operations that grows, and the shapes of their results."""

    def __init__(self, shape, seed=0):
        self.rng = np.random.default_rng(seed)
        self.operations = [Operation("images", (), shape)]
        self.shapes = [tuple(shape)]

    def add(self, kind, inputs, numbers=(), weights=()):
        self.operations.append(Operation(kind, inputs, tuple(numbers), tuple(weights)))
        images = np.zeros((1, math.prod(self.shapes[0])))
        operands = [np.zeros((1, *self.shapes[place])) for place in inputs]
        if kind == "signs":
            shape = self.shapes[inputs[0]]
        else:
            shape = computed(self.operations[-1], operands, images).shape[1:]
        self.shapes.append(shape)
        return len(self.operations) - 1

    def floats(self, *shape):
        return self.rng.standard_normal(shape).astype(np.float32)

    def words(self, *shape):
        return packed(np.where(self.rng.random(shape) < 0.5, -1, 1))

    def channels(self, place):
        return self.shapes[place][-1]

    def conv(self, x, out, size=(3, 3), strides=(1, 1), padding=None, dilation=(1, 1), groups=1):
        kernel = self.floats(*size, self.channels(x) // groups, out)
        kernel /= np.sqrt(np.float32(kernel[..., 0].size))
        numbers = (*strides, *(padding or same(size)), *dilation, groups)
        return self.add("conv", [x], numbers, [kernel])

    def binary_conv(self, x, out, size=(3, 3), strides=(1, 1), padding=None):
        words = self.words(*size, self.channels(x), out)
        return self.add("binary_conv", [x], (*strides, *(padding or same(size))), [words])

    def signs(self, x, threshold=None):
        return self.add("signs", [x], (), [threshold])

    def affine(self, x, scale=1.0):
        gain = self.rng.uniform(0.2, 1.5, self.channels(x)).astype(np.float32) * np.float32(scale)
        return self.add("affine", [x], (), [gain, self.floats(self.channels(x))])

    def prelu(self, x):
        return self.add("prelu", [x], (), [self.rng.random(self.channels(x), np.float32)])

    def clip(self, x, low=-1.0, high=1.0):
        return self.add("clip", [x], (), [np.float32([low, high])])

    def unit(self, x, out, strides=(1, 1), shortcut=None, threshold=None, size=(3, 3)):
        """A binary convolution, its norm, a shortcut if any, and a PReLU."""
        terms = math.prod(size) * self.channels(x)
        y = self.binary_conv(self.signs(x, threshold), out, size, strides)
        y = self.affine(y, 1 / math.sqrt(terms))
        if shortcut is not None:
            y = self.add("add", [y, shortcut])
        return self.prelu(y)


def same(size):
    down, across = size
    return ((down - 1) // 2, down // 2, (across - 1) // 2, across // 2)


def join_ends(build):
    """Add an operation whose result holds everything that no other operation uses."""
    used = {place for operation in build.operations for place in operation.inputs}
    ends = [place for place in range(1, len(build.operations)) if place not in used]
    rows = [build.add("reshape", [place], (math.prod(build.shapes[place]),)) for place in ends]
    return build.add("concatenate", rows, (0,))


def every_kind():
    """Build a network of operations of every kind, all of which its result depends on."""
    build = Builder((9, 8, 3))
    # Between two images of equal size: a step of the first layers, binary and grouped products.
    x = build.clip(build.affine(build.conv(0, 64, (7, 7), (2, 2))), 0, np.inf)
    x = build.add("max_pool", [x], (3, 3, 2, 2, 1, 1, 1, 1))
    x = build.unit(x, 64, shortcut=x)
    x = build.unit(x, 40, threshold=build.floats(64), strides=(2, 1))
    x = build.conv(x, 40, padding=(2, 2, 2, 2), dilation=(2, 2), groups=4)
    x = build.affine(build.binary_conv(x, 18), 0.1)
    # Gates by channel, as in squeeze-and-excite.
    mean = build.affine(build.add("sum", [x], (0, 1)), 0.1)
    gate = build.add("sigmoid", [build.add("dense", [mean], (), [build.floats(18, 18)])])
    x = build.add("multiply", [x, build.add("reshape", [gate], (1, 1, 18))])
    x = build.add("tanh", [x])
    x = build.add("sum_pool", [x], (2, 2, 1, 1, 0, 1, 0, 1))
    # Numbers that change their places.
    rows, columns, _ = build.shapes[x]
    wide = build.add("pad", [x], (1, 0, 3, 0, 2, 4), [np.float32([-1.5])])
    part = build.add("slice", [wide], (0, 1, 2, rows + 1, columns + 2, 24, 1, 2, 3))
    build.add("transpose", [part], (2, 0, 1))
    value = build.add("constant", [], (), [build.floats(1, columns, 1)])
    build.add("multiply", [x, value])
    most = build.add("reshape", [build.add("max", [x], (0, 1))], (18, 1))
    build.add("softmax", [build.add("broadcast", [most], (18, 5))])
    row = build.add("reshape", [x], (math.prod(build.shapes[x]),))
    words = build.words(build.channels(row), 33)
    build.affine(build.add("binary_dense", [build.signs(row)], (), [words]), 0.1)
    join_ends(build)
    return build


def random_network(seed, operations=12):
    """Build a network of any operations, each on any earlier results that it can take."""
    build = Builder((5, 4, 3), seed)
    rng = build.rng
    images = [0]  # results with three axes, and all others
    rows = []

    def one_of(places):
        # Recent results more often, so that networks are deep.
        return places[max(0, len(places) - 1 - int(rng.exponential(1.5)))]

    def image_step():
        x = one_of(images)
        height, width, channels = build.shapes[x]
        kind = rng.integers(13)
        size = (int(rng.integers(1, 1 + min(3, height))), int(rng.integers(1, 1 + min(3, width))))
        strides = tuple(int(n) for n in rng.integers(1, 3, 2))
        out = int(rng.choice([1, 5, 16, 24, 32, 70]))
        if kind < 3:
            threshold = [None, np.zeros(channels, np.float32), build.floats(channels)][kind]
            y = build.affine(build.binary_conv(build.signs(x, threshold), out, size, strides), 0.1)
        elif kind == 3:
            y = build.conv(x, out, size, strides)
        elif kind == 4:
            y = build.binary_conv(x, out, size, strides)
            y = build.affine(y, 0.1)
        elif kind == 5:
            y = build.conv(x, channels, size, strides, groups=channels)
        elif kind == 6:
            pool = str(rng.choice(["max_pool", "sum_pool"]))
            y = build.add(pool, [x], (*size, *strides, *same(size)))
        elif kind == 7:
            y = build.prelu(x)
        elif kind == 8:
            y = build.clip(x)
        elif kind == 9:
            y = build.affine(x)
        elif kind == 10:
            alike = [place for place in images if build.shapes[place] == build.shapes[x]]
            y = build.add(str(rng.choice(["add", "multiply"])), [x, one_of(alike)])
        elif kind == 11:
            alike = [place for place in images if build.shapes[place][:2] == (height, width)]
            y = build.add("concatenate", [x, one_of(alike)], (2,))
        else:
            y = build.add(str(rng.choice(["tanh", "sigmoid"])), [x])
        images.append(y)

    def row_step():
        if not rows or rng.random() < 0.3:
            x = one_of(images)
            if rng.random() < 0.5:
                y = build.add("sum", [x], (0, 1))
            else:
                y = build.add("reshape", [x], (math.prod(build.shapes[x]),))
        else:
            x = one_of(rows)
            out = int(rng.choice([1, 8, 16, 33]))
            if rng.random() < 0.5:
                y = build.add("dense", [x], (), [build.floats(build.channels(x), out)])
            else:
                words = build.words(build.channels(x), out)
                y = build.add("binary_dense", [build.signs(x)], (), [words])
        rows.append(build.affine(y, 0.1))

    for _ in range(operations):
        (image_step if rng.random() < 0.8 else row_step)()
    return build
