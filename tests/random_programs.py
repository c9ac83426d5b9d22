"""Programs drawn at random: any operation on any results before it that it fits."""

import math

import numpy as np

from siman_jax.program import operations as op
from siman_jax.program.operations import Program, packed_bits


class Draw:
    """Draws programs from a generator of random numbers."""

    def __init__(self, rng):
        self.rng = rng
        self.operations = [op.Images(shape=(*self.sizes(2, 3, 8), self.size(1, 40)))]
        self.shapes = [self.operations[0].shape]

    def size(self, least, most):
        return int(self.rng.integers(least, most + 1))

    def sizes(self, count, least, most):
        return tuple(self.size(least, most) for _ in range(count))

    def floats(self, *shape):
        return self.rng.standard_normal(shape).astype(np.float32)

    def words(self, *shape):
        return packed_bits(self.rng.integers(0, 2, shape).astype(bool))

    def padding(self, most):
        return tuple(self.sizes(2, 0, most) for _ in range(2))

    def append(self, kind, *inputs, **settings):
        """Append an operation if it fits; return its place, else None."""
        operation = kind(inputs=inputs, **settings)
        try:
            shape = operation.shape_of(*(self.shapes[place] for place in inputs))
        except ValueError:
            return None
        if math.prod(shape) > 5000:
            return None
        self.operations.append(operation)
        self.shapes.append(shape)
        return len(self.shapes) - 1

    def any_operation(self):
        """Draw an operation on one of the latest results, and append it if it fits."""
        place = self.size(max(0, len(self.shapes) - 3), len(self.shapes) - 1)
        if not self.shapes[place]:
            return
        names = [name for name in op.OPERATIONS if name != "images"]
        getattr(self, names[self.size(0, len(names) - 1)])(place, self.shapes[place])

    def constant(self, place, x):
        self.append(op.Constant, value=self.floats(*x))

    def conv(self, place, x):
        groups = [n for n in (1, 2, 3, x[-1]) if x[-1] % n == 0]
        groups = groups[self.size(0, len(groups) - 1)]
        kernel = self.floats(*self.sizes(2, 1, 3), x[-1] // groups, groups * self.size(1, 3))
        pairs = {"strides": self.sizes(2, 1, 2), "dilation": self.sizes(2, 1, 2)}
        self.append(op.Conv, place, kernel=kernel, groups=groups, padding=self.padding(2), **pairs)

    def binary_conv(self, place, x):
        if self.rng.random() < 0.7:
            place = self.signs(place, x)
        if place is not None:
            words = self.words(*self.sizes(2, 1, 3), x[-1], self.size(1, 40))
            strides = self.sizes(2, 1, 2)
            self.append(op.BinaryConv, place, words=words, strides=strides, padding=self.padding(2))

    def dense(self, place, x):
        self.append(op.Dense, place, kernel=self.floats(x[-1], self.size(1, 20)))

    def binary_dense(self, place, x):
        if len(x) > 1:
            place = self.append(op.Reshape, place, shape=(math.prod(x),))
        if self.rng.random() < 0.7 and place is not None:
            place = self.signs(place, (math.prod(x),))
        if place is not None:
            self.append(op.BinaryDense, place, words=self.words(math.prod(x), self.size(1, 20)))

    def pool(self, kind, place):
        window, strides = self.sizes(2, 1, 3), self.sizes(2, 1, 3)
        self.append(kind, place, window=window, strides=strides, padding=self.padding(1))

    def max_pool(self, place, x):
        self.pool(op.MaxPool, place)

    def sum_pool(self, place, x):
        self.pool(op.SumPool, place)

    def reduction(self, kind, place, x):
        axes = tuple(axis for axis in range(len(x)) if self.rng.random() < 0.5)
        if len(axes) < len(x):
            self.append(kind, place, axes=axes)

    def sum(self, place, x):
        self.reduction(op.Sum, place, x)

    def max(self, place, x):
        self.reduction(op.Max, place, x)

    def affine(self, place, x):
        scale, shift = (self.floats(x[-1]) if self.rng.random() < 0.8 else None for _ in range(2))
        self.append(op.Affine, place, scale=scale, shift=shift)

    def prelu(self, place, x):
        self.append(op.PReLU, place, slope=self.floats(x[-1]))

    def clip(self, place, x):
        bounds = sorted(self.rng.choice([-math.inf, -1, -0.5, 0, 1, 6, math.inf], 2, False))
        self.append(op.Clip, place, low=float(bounds[0]), high=float(bounds[1]))

    def sigmoid(self, place, x):
        self.append(op.Sigmoid, place)

    def tanh(self, place, x):
        self.append(op.Tanh, place)

    def softmax(self, place, x):
        self.append(op.Softmax, place)

    def signs(self, place, x):
        threshold = self.floats(x[-1]) if self.rng.random() < 0.5 else None
        return self.append(op.Signs, place, threshold=threshold)

    def pairwise(self, kind, place, x):
        same = [other for other, shape in enumerate(self.shapes) if len(shape) == len(x)]
        self.append(kind, place, same[self.size(0, len(same) - 1)])

    def add(self, place, x):
        self.pairwise(op.Add, place, x)

    def multiply(self, place, x):
        self.pairwise(op.Multiply, place, x)

    def concatenate(self, place, x):
        axis = self.size(0, len(x) - 1)
        fitting = [
            other
            for other, shape in enumerate(self.shapes)
            if len(shape) == len(x) and shape[:axis] + shape[axis + 1 :] == x[:axis] + x[axis + 1 :]
        ]
        self.append(
            op.Concatenate, place, fitting[self.size(0, len(fitting) - 1)], place, axis=axis
        )

    def pad(self, place, x):
        before, after = self.sizes(len(x), 0, 1), self.sizes(len(x), 0, 1)
        self.append(op.Pad, place, before=before, after=after, value=float(self.floats(1)[0]))

    def slice(self, place, x):
        starts = tuple(self.size(0, n - 1) for n in x)
        stops = tuple(self.size(start + 1, n) for start, n in zip(starts, x, strict=True))
        self.append(op.Slice, place, starts=starts, stops=stops, strides=self.sizes(len(x), 1, 3))

    def reshape(self, place, x):
        total = math.prod(x)
        first = [n for n in range(1, total + 1) if total % n == 0]
        first = first[self.size(0, len(first) - 1)]
        self.append(op.Reshape, place, shape=(first, 1, total // first))

    def transpose(self, place, x):
        self.append(op.Transpose, place, axes=tuple(map(int, self.rng.permutation(len(x)))))

    def broadcast(self, place, x):
        shape = tuple(self.size(1, 3) if n == 1 else n for n in x)
        self.append(op.Broadcast, place, shape=shape)


def draw_program(seed, operations=12):
    """Return a program of about so many operations, whose result is the last one."""
    draw = Draw(np.random.default_rng(seed))
    for _ in range(4 * operations):
        if len(draw.operations) >= operations:
            break
        draw.any_operation()
    return Program(tuple(draw.operations), len(draw.operations) - 1)
