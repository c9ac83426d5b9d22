"""The operations that a trained network is made of, with their shapes and weights.

A program is a list of operations in order. Each has one result, and takes results of operations
before it, by their places in the list. The first operation is `Images`.

Every result is float32 `[batch, *shape]`. Shapes and axes here leave the batch out: an image has
the shape (height, width, channels) and the axes 0, 1 and 2. The last axis is the channels; weights
written `[channels]` have one number for each.

Signs are +1 and -1, so a binary product of signs is a whole number, which float32 holds exactly up
to 2^24. An executor may keep signs as bits and such products as integers.

Bits of a kernel are packed along its input channels into words of 32: bit 1 is +1, bit 0 is -1, and
channel i is bit i % 32 of word i // 32, counted from the least significant. Bits beyond the last
channel are 0.

This file needs only NumPy. Each class checks its own settings and shapes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np

Shape = tuple[int, ...]
Pair = tuple[int, int]
# A NumPy array; a JAX array or tracer while a network is traced.
Weight = Any

WORD_BITS = 32
# Sums of more products of signs than this are not exact in float32.
MOST_TERMS = 2**24


# Marks fields that hold weights.
_WEIGHT = {"weight": True}


def _expect(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Operation:
    """An operation on earlier results.

    Attributes:
      inputs: places of its operands in the program's list.
      path: of the module that asked for it, such as "layer1_0/conv1"; may be empty.
      line: where in the source it was asked for, such as "resnet.py:35"; files do not keep it.
      origin: number of the equation of the traced network, and of its result, that this computes;
        None if it is of a program's own making. Files do not keep it.
    """

    operands: ClassVar[int] = 1

    inputs: tuple[int, ...] = ()
    path: str = ""
    line: str = ""
    origin: Pair | None = None

    def shape_of(self, *shapes: Shape) -> Shape:
        """Return the shape of the result for operands of these shapes.

        Raises:
          ValueError: the shapes, the settings and the weights do not fit each other.
        """
        count, wanted = len(shapes), self.operands
        _expect(count == wanted or (wanted < 0 < count), f"{count} operands")
        return self._shape_of(*shapes)

    def _shape_of(self, *shapes: Shape) -> Shape:
        raise NotImplementedError

    def weights(self) -> dict[str, Weight]:
        """Return the arrays of the operation by the names of its fields, without those absent."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if "weight" in f.metadata}
        return {name: array for name, array in named.items() if array is not None}

    # Once for all: a model would load later if every class had one of its own. Nor are classes
    # without fields of their own made dataclasses again.
    def __repr__(self) -> str:
        settings = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in fields(self))
        return f"{type(self).__qualname__}({settings})"


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Images(Operation):
    """The normalized images, `shape` = (height, width, channels)."""

    operands = 0
    shape: Shape

    def _shape_of(self, *shapes: Shape) -> Shape:
        _expect(len(self.shape) == 3, f"images have the shape {self.shape}; expected three sizes")
        _check_positive(self.shape, "sizes")
        return self.shape


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Constant(Operation):
    """The same array for every image: `value` float32 `[*shape]`."""

    operands = 0
    value: Weight = field(metadata=_WEIGHT)

    def _shape_of(self, *shapes: Shape) -> Shape:
        return tuple(self.value.shape)


# Products -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Conv(Operation):
    """Convolution of `[height, width, in]` with a real kernel, zeros around the image.

        y[i, j, o] = sum_{a, b, c} x[i s + a d - p, j s + b d - p, c] kernel[a, b, c, o]

    Attributes:
      kernel: float32 `[height, width, in / groups, out]`.
      strides: s, down and across.
      padding: zeros before and after, p, for height and width.
      dilation: d, the distance between taps, down and across.
      groups: how many parts of the channels are convolved apart: of the input's channels and of
        the kernel's filters, in order.
    """

    kernel: Weight = field(metadata=_WEIGHT)
    strides: Pair = (1, 1)
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    groups: int = 1

    def _shape_of(self, *shapes: Shape) -> Shape:
        (x,) = shapes
        _expect(len(x) == 3 and len(self.kernel.shape) == 4, f"a convolution of {x} {_of(self)}")
        height, width, channels, out = self.kernel.shape
        _expect(self.groups >= 1, f"there are {self.groups} groups")
        _expect(
            channels * self.groups == x[2] and out % self.groups == 0,
            f"{self.groups} groups of {x[2]} channels {_of(self)}",
        )
        return (*_places(x, (height, width), self.strides, self.padding, self.dilation), out)


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class BinaryConv(Operation):
    """Convolution of `[height, width, in]` with a kernel of +1 and -1, zeros around the image.

    If the operand is a result of `Signs`, the sums are whole numbers. It may also be real.

    Attributes:
      words: uint32 `[height, width, ceil(in / 32), out]`, bits packed as the file says above.
      strides, padding: as in `Conv`.
    """

    words: Weight = field(metadata=_WEIGHT)
    strides: Pair = (1, 1)
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0))

    def _shape_of(self, *shapes: Shape) -> Shape:
        (x,) = shapes
        _expect(len(x) == 3 and len(self.words.shape) == 4, f"a convolution of {x} {_of(self)}")
        height, width, words, out = self.words.shape
        _check_words(words, x[2], height * width)
        return (*_places(x, (height, width), self.strides, self.padding), out)


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Dense(Operation):
    """Product of the last axis with a matrix: `kernel` float32 `[in, out]`."""

    kernel: Weight = field(metadata=_WEIGHT)

    def _shape_of(self, *shapes: Shape) -> Shape:
        (x,) = shapes
        _expect(
            len(x) >= 1 and len(self.kernel.shape) == 2 and x[-1] == self.kernel.shape[0],
            f"a product of {x} {_of(self)}",
        )
        return (*x[:-1], self.kernel.shape[1])


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class BinaryDense(Operation):
    """Product of `[in]` with a matrix of +1 and -1: `words` uint32 `[ceil(in / 32), out]`.

    If the operand is a result of `Signs`, the sums are whole numbers. It may also be real.
    """

    words: Weight = field(metadata=_WEIGHT)

    def _shape_of(self, *shapes: Shape) -> Shape:
        (x,) = shapes
        _expect(len(x) == 1 and len(self.words.shape) == 2, f"a product of {x} {_of(self)}")
        _check_words(self.words.shape[0], x[0], 1)
        return (self.words.shape[1],)


# Pools and sums -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class _Pool(Operation):
    """An operation on each window of (height, width)."""

    window: Pair
    strides: Pair = (1, 1)
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0))

    def _shape_of(self, *shapes: Shape) -> Shape:
        (x,) = shapes
        _expect(len(x) == 3, f"a pool of {x}; expected height, width and channels")
        _check_positive(self.window, "window")
        # Otherwise a window may see only padding.
        _expect(
            all(max(p) < w for p, w in zip(self.padding, self.window, strict=True)),
            f"padding {self.padding} as large as the window {self.window}",
        )
        return (*_places(x, self.window, self.strides, self.padding), x[2])


class MaxPool(_Pool):
    """Maximum of each window of (height, width), of each channel; padding is never the maximum."""


class SumPool(_Pool):
    """Sum of each window of (height, width), of each channel; padding counts as zeros.

    An average pool is this and an `Affine` or `Multiply` by 1 / count.
    """


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class _Reduction(Operation):
    """An operation over some axes."""

    axes: tuple[int, ...]

    def _shape_of(self, *shapes: Shape) -> Shape:
        (x,) = shapes
        _expect(
            bool(self.axes)
            and list(self.axes) == sorted(set(self.axes))
            and set(self.axes) <= set(range(len(x))),
            f"axes {self.axes} of {x}; expected some of its axes in order",
        )
        return tuple(size for axis, size in enumerate(x) if axis not in self.axes)


class Sum(_Reduction):
    """Sum over `axes`, which the result does not have. A mean is this and an `Affine`."""


class Max(_Reduction):
    """Maximum over `axes`, which the result does not have."""


# One number at a time -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Affine(Operation):
    """x * scale + shift, `[channels]` each, float32; None stands for 1 and for 0."""

    scale: Weight = field(default=None, metadata=_WEIGHT)
    shift: Weight = field(default=None, metadata=_WEIGHT)

    def _shape_of(self, *shapes: Shape) -> Shape:
        return _by_channel(shapes[0], scale=self.scale, shift=self.shift)


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class PReLU(Operation):
    """x where x > 0, else slope * x; `slope` float32 `[channels]`."""

    slope: Weight = field(metadata=_WEIGHT)

    def _shape_of(self, *shapes: Shape) -> Shape:
        return _by_channel(shapes[0], slope=self.slope)


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Clip(Operation):
    """min(max(x, low), high): ReLU is 0 to infinity, ReLU6 0 to 6, hardtanh -1 to 1."""

    low: float
    high: float

    def _shape_of(self, *shapes: Shape) -> Shape:
        _expect(self.low <= self.high, f"a clip from {self.low} to {self.high}")
        return shapes[0]


class Sigmoid(Operation):
    """1 / (1 + exp(-x))."""

    def _shape_of(self, *shapes: Shape) -> Shape:
        return shapes[0]


class Tanh(Operation):
    """The hyperbolic tangent."""

    def _shape_of(self, *shapes: Shape) -> Shape:
        return shapes[0]


class Softmax(Operation):
    """exp(x) over its sum along the last axis."""

    def _shape_of(self, *shapes: Shape) -> Shape:
        _expect(len(shapes[0]) >= 1, "a softmax of single numbers")
        return shapes[0]


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Signs(Operation):
    """+1 where x >= threshold, else -1.

    Attributes:
      threshold: float32 `[channels]`; None for the mean of each sample, over all of its axes.
    """

    threshold: Weight = field(default=None, metadata=_WEIGHT)

    def _shape_of(self, *shapes: Shape) -> Shape:
        alone = self.threshold is None and math.prod(shapes[0]) < 2
        _expect(not alone, "signs about the mean of single numbers")
        return _by_channel(shapes[0], threshold=self.threshold)


# Two operands -------------------------------------------------------------------------------------


class _Pairwise(Operation):
    """An operation on two operands, number by number."""

    operands = 2

    def _shape_of(self, *shapes: Shape) -> Shape:
        a, b = shapes
        _expect(
            len(a) == len(b) and all(1 in (m, n) or m == n for m, n in zip(a, b, strict=True)),
            f"operands of {a} and {b}; expected equal sizes, or 1",
        )
        return tuple(map(max, a, b))


class Add(_Pairwise):
    """a + b, of equally many axes; an axis of size 1 is repeated."""


class Multiply(_Pairwise):
    """a * b, of equally many axes; an axis of size 1 is repeated."""


# Places -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Concatenate(Operation):
    """The operands, one or more, one after another along `axis`."""

    operands = -1
    axis: int

    def _shape_of(self, *shapes: Shape) -> Shape:
        first = shapes[0]
        _expect(0 <= self.axis < len(first), f"axis {self.axis} of {first}")
        for shape in shapes:
            _expect(
                _without(shape, self.axis) == _without(first, self.axis),
                f"parts of {first} and {shape} along axis {self.axis}",
            )
        total = sum(shape[self.axis] for shape in shapes)
        return (*first[: self.axis], total, *first[self.axis + 1 :])


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Pad(Operation):
    """`value` added `before` and `after`, so many for each axis."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    value: float = 0.0

    def _shape_of(self, *shapes: Shape) -> Shape:
        (x,) = shapes
        _expect(len(self.before) == len(self.after) == len(x), f"padding of {x} {_of(self)}")
        _expect(min(*self.before, *self.after, 0) >= 0, "negative padding")
        return tuple(b + n + a for b, n, a in zip(self.before, x, self.after, strict=True))


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Slice(Operation):
    """x[start:stop:stride], for each axis."""

    starts: tuple[int, ...]
    stops: tuple[int, ...]
    strides: tuple[int, ...]

    def _shape_of(self, *shapes: Shape) -> Shape:
        (x,) = shapes
        _expect(
            len(self.starts) == len(self.stops) == len(self.strides) == len(x)
            and all(0 <= a < b <= n for a, b, n in zip(self.starts, self.stops, x, strict=True)),
            f"a slice from {self.starts} to {self.stops} of {x}",
        )
        _check_positive(self.strides, "strides")
        return tuple(
            -(-(b - a) // s) for a, b, s in zip(self.starts, self.stops, self.strides, strict=True)
        )


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Reshape(Operation):
    """The same numbers in the same order, the last axis fastest, as another `shape`."""

    shape: Shape

    def _shape_of(self, *shapes: Shape) -> Shape:
        _check_positive(self.shape, "sizes")
        _expect(
            math.prod(self.shape) == math.prod(shapes[0]), f"a shape {self.shape} for {shapes[0]}"
        )
        return self.shape


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Transpose(Operation):
    """The axes in another order: axis i of the result is `axes[i]` of the operand."""

    axes: tuple[int, ...]

    def _shape_of(self, *shapes: Shape) -> Shape:
        (x,) = shapes
        _expect(sorted(self.axes) == list(range(len(x))), f"axes {self.axes} of {x}")
        return tuple(x[axis] for axis in self.axes)


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Broadcast(Operation):
    """Axes of size 1 repeated, to give `shape`."""

    shape: Shape

    def _shape_of(self, *shapes: Shape) -> Shape:
        (x,) = shapes
        _check_positive(self.shape, "sizes")
        _expect(
            len(x) == len(self.shape)
            and all(n in (1, wanted) for n, wanted in zip(x, self.shape, strict=True)),
            f"a shape {self.shape} for {x}; expected equal sizes, or 1",
        )
        return self.shape


# Names of the operations in files and for executors.
OPERATIONS: dict[str, type[Operation]] = {
    "images": Images,
    "constant": Constant,
    "conv": Conv,
    "binary_conv": BinaryConv,
    "dense": Dense,
    "binary_dense": BinaryDense,
    "max_pool": MaxPool,
    "sum_pool": SumPool,
    "sum": Sum,
    "max": Max,
    "affine": Affine,
    "prelu": PReLU,
    "clip": Clip,
    "sigmoid": Sigmoid,
    "tanh": Tanh,
    "softmax": Softmax,
    "signs": Signs,
    "add": Add,
    "multiply": Multiply,
    "concatenate": Concatenate,
    "pad": Pad,
    "slice": Slice,
    "reshape": Reshape,
    "transpose": Transpose,
    "broadcast": Broadcast,
}
NAMES = {kind: name for name, kind in OPERATIONS.items()}


@dataclass(frozen=True, eq=False)
class Program:
    """A network: operations in order, and the place of the one that gives the logits."""

    operations: tuple[Operation, ...]
    result: int

    def shapes(self) -> tuple[Shape, ...]:
        """Return the shape of every result, after checking all operations.

        Raises:
          ValueError: an operation takes the result of one that is not before it, or shapes do not
            fit; the message names the operation.
        """
        shapes: list[Shape] = []
        for place, operation in enumerate(self.operations):
            try:
                shapes.append(_checked_shape(operation, place, shapes))
            except ValueError as error:
                raise ValueError(f"operation {place}, {_called(operation)}, has {error}") from error
        if not 0 <= self.result < len(shapes):
            raise ValueError(f"its result is operation {self.result} of {len(shapes)}")
        return tuple(shapes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images."""
        first = self.operations[0]
        assert isinstance(first, Images)
        height, width, channels = first.shape
        return height, width, channels

    def users(self) -> list[list[int]]:
        """Return, for each operation, the places of those that take its result, in order."""
        users: list[list[int]] = [[] for _ in self.operations]
        for place, operation in enumerate(self.operations):
            for source in dict.fromkeys(operation.inputs):
                users[source].append(place)
        return users

    def tensors(self) -> Iterator[tuple[int, str, Weight]]:
        """Yield each weight with its operation's place and the name of its field."""
        for place, operation in enumerate(self.operations):
            for name, array in operation.weights().items():
                yield place, name, array


def word_count(channels: int) -> int:
    """Return how many words hold the bits of so many channels.

    >>> word_count(32), word_count(33)
    (1, 2)
    """
    return -(-channels // WORD_BITS)


def _called(operation: Operation) -> str:
    name = NAMES.get(type(operation), type(operation).__name__)
    return f"{name} of {operation.path}" if operation.path else name


def _checked_shape(operation: Operation, place: int, shapes: Sequence[Shape]) -> Shape:
    _expect(isinstance(operation, Images) == (place == 0), "images elsewhere than at the start")
    for source in operation.inputs:
        _expect(0 <= source < place, f"the operand {source}, which is not before it")
    return operation.shape_of(*(shapes[source] for source in operation.inputs))


def _of(operation: Operation) -> str:
    """Describe an operation's weights for a message."""
    shapes = {name: tuple(array.shape) for name, array in operation.weights().items()}
    return "with " + ", ".join(f"{name} {shape}" for name, shape in shapes.items())


def _check_positive(sizes: Sequence[int], what: str) -> None:
    _expect(min(sizes, default=1) >= 1, f"{what} {tuple(sizes)}; expected 1 or more")


def _check_words(words: int, channels: int, taps: int) -> None:
    _expect(
        words == word_count(channels),
        f"{words} words for {channels} channels; expected {word_count(channels)}",
    )
    _expect(taps * channels <= MOST_TERMS, f"sums of {taps * channels} terms, more than 2^24")


def _places(
    x: Shape,
    window: Pair,
    strides: Pair,
    padding: tuple[Pair, Pair],
    dilation: Pair = (1, 1),
) -> Pair:
    """Return at how many places, down and across, a window fits into the padded image."""
    for sizes, what in ((window, "window"), (strides, "strides"), (dilation, "dilation")):
        _check_positive(sizes, what)
    _expect(min(n for side in padding for n in side) >= 0, f"padding {padding}, which is negative")
    spans = [
        n + sum(pad) - (w - 1) * d - 1
        for n, w, pad, d in zip(x[:2], window, padding, dilation, strict=True)
    ]
    _expect(min(spans) >= 0, f"a window of {window} larger than the padded image of {x}")
    down, across = (span // step + 1 for span, step in zip(spans, strides, strict=True))
    return down, across


def _by_channel(x: Shape, **weights: Weight) -> Shape:
    for name, array in weights.items():
        _expect(
            array is None or (len(x) >= 1 and tuple(array.shape) == x[-1:]),
            f"a {name} of {None if array is None else tuple(array.shape)} for {x}",
        )
    return x


def _without(shape: Shape, axis: int) -> Shape:
    return (*shape[:axis], *shape[axis + 1 :])


def packed_bits(bits: np.ndarray) -> np.ndarray:
    """Pack bits along the axis before the last.

    Args:
      bits: bool `[..., in, out]`, True for +1.

    Returns:
      uint32 `[..., ceil(in / 32), out]`.

    >>> packed_bits(np.array([[True], [False], [True], [True]])).tolist()
    [[13]]
    """
    *outer, channels, out = bits.shape
    padded = np.zeros((*outer, word_count(channels) * WORD_BITS, out), bool)
    padded[..., :channels, :] = bits
    octets = np.packbits(np.moveaxis(padded, -2, -1), axis=-1, bitorder="little")
    return np.moveaxis(np.ascontiguousarray(octets).view("<u4"), -1, -2).astype(np.uint32)


def unpacked_bits(words: np.ndarray, channels: int) -> np.ndarray:
    """Return the bits that `packed_bits` packed: bool `[..., channels, out]`.

    >>> unpacked_bits(np.uint32([[13]]), 4).ravel().tolist()
    [True, False, True, True]
    """
    octets = np.ascontiguousarray(np.moveaxis(words, -2, -1).astype("<u4")).view(np.uint8)
    bits = np.unpackbits(octets, axis=-1, bitorder="little")[..., :channels]
    return np.moveaxis(bits, -1, -2).astype(bool)
