"""Writes cases for `replay.cc`: arguments of the native library's functions, and their results.

    python tests/native/record.py FILE

What is expected is computed here by NumPy, from the definitions and in float64. No number is so
near a place where a function jumps that rounding could decide on which side it is. `replay.cc`
tells what the file looks like.
"""

import itertools
import struct
import sys
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import native_networks
import numpy as np

from siman_jax.models.product import same_padding
from siman_jax.native.convolution import APPROX, ONE, STRAIGHT_THROUGH
from siman_jax.native.norm import HARD_TANH, NONE, PRELU

EPSILON = 1e-5  # added to the variance of a sample
CLEARANCE = 1e-4  # least distance from points where a function jumps
NOTHING = np.zeros(0, np.float32)
ACTIVATIONS = {NONE: "none", PRELU: "prelu", HARD_TANH: "hard_tanh"}
ESTIMATORS = {ONE: "one", APPROX: "approx", STRAIGHT_THROUGH: "straight_through"}


class Case(NamedTuple):
    name: str
    numbers: dict[str, int]
    given: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]


class Sizes(NamedTuple):
    """Of a convolution: image `[batch, height, width, channels]`, kernel `[height, width, out]`."""

    image: tuple[int, int, int, int]
    kernel: tuple[int, int, int]
    stride: int = 1
    padding: tuple[tuple[int, int], tuple[int, int]] | None = None

    def around(self):
        down, across = (same_padding(taps) for taps in self.kernel[:2])
        return self.padding or (down[0], across[1])

    def shape(self):
        return (*self.kernel[:2], self.image[3], self.kernel[2])

    def result(self):
        sizes = (
            (size + sum(pad) - taps) // self.stride + 1
            for size, pad, taps in zip(self.image[1:3], self.around(), self.kernel[:2], strict=True)
        )
        return (self.image[0], *sizes, self.kernel[2])

    def numbers(self):
        (top, _), (left, _) = self.around()
        return {"stride": self.stride, "top": top, "left": left}

    def __str__(self):
        image, kernel = ("x".join(map(str, sizes)) for sizes in (self.image, self.kernel))
        return f"{image} by {kernel} stride {self.stride} padding {self.around()}"


# Odd sizes, and those for which the library has another path: channels in whole words of 32 bits or
# lanes of 16, more than 64 filters, sums larger than the cache, small images joined in a row,
# batches that groups do not divide, kernels larger than the image, pixels that no tap uses.
CONVOLUTIONS = [
    Sizes((4, 8, 8, 16), (3, 3, 16)),
    Sizes((3, 7, 7, 20), (3, 3, 24)),
    Sizes((4, 8, 8, 16), (3, 3, 32), 2),
    Sizes((3, 9, 6, 5), (1, 1, 7), 2),
    Sizes((3, 9, 6, 5), (2, 2, 7), 2),
    Sizes((2, 14, 11, 3), (7, 7, 3), 3),
    Sizes((2, 3, 2, 33), (7, 7, 17)),
    Sizes((2, 5, 5, 70), (5, 5, 40)),
    Sizes((9, 4, 4, 64), (3, 3, 130)),
    Sizes((17, 2, 3, 96), (3, 3, 96)),
    Sizes((1, 32, 32, 16), (3, 3, 16)),
    Sizes((2, 6, 13, 24), (3, 3, 48)),
    Sizes((2, 13, 21, 1), (4, 6, 1), 3),
    Sizes((5, 1, 1, 9), (3, 3, 5)),
    Sizes((2, 6, 1, 48), (1, 3, 65)),
    Sizes((2, 10, 9, 8), (3, 5, 19), 2, ((0, 0), (3, 0))),
    Sizes((2, 5, 7, 31), (2, 3, 9), 1, ((2, 4), (5, 1))),
    Sizes((2, 3, 300, 2), (3, 3, 6)),
    Sizes((2, 19, 4, 1), (18, 2, 4)),
    Sizes((8, 1, 770, 1), (1, 1, 5)),
]


def random(*parts):
    """Return a generator for one case."""
    return np.random.default_rng(list("/".join(map(str, parts)).encode()))


def floats(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def convolve(x, kernel, sizes):
    """Convolve x with a kernel `[down, across, channels, out]`, padded with zeros."""
    padded = np.pad(x, ((0, 0), *sizes.around(), (0, 0)))
    y = np.zeros(sizes.result(), kernel.dtype)
    for tap, seen in taps(sizes):
        y += padded[seen] @ kernel[tap]
    return y


def convolve_back(x, kernel, sizes, dy):
    """Compute gradients of the kernel and of x."""
    padded = np.pad(x, ((0, 0), *sizes.around(), (0, 0)))
    dkernel, dpadded = np.zeros(kernel.shape), np.zeros(padded.shape)
    for tap, seen in taps(sizes):
        dkernel[tap] = np.einsum("nrcx,nrco->xo", padded[seen], dy)
        dpadded[seen] += dy @ kernel[tap].T
    (top, _), (left, _) = sizes.around()
    return dkernel, dpadded[:, top : top + x.shape[1], left : left + x.shape[2]]


def taps(sizes):
    """Yield each tap of the kernel, and its places in a padded image for all results."""
    _, rows, columns, _ = sizes.result()
    for down, across in itertools.product(*map(range, sizes.kernel[:2])):
        seen = [
            slice(first, first + (count - 1) * sizes.stride + 1, sizes.stride)
            for first, count in ((down, rows), (across, columns))
        ]
        yield (down, across), (slice(None), *seen)


def signs(x):
    return np.where(x >= 0, 1, -1)


def standardized(x, centred):
    """Return u, and the moments of each sample: its mean, and 1 / its deviation."""
    x = np.float64(x)
    mean, scale = np.zeros(len(x)), np.ones(len(x))
    if centred:
        samples = x.reshape(len(x), -1)
        mean, scale = samples.mean(1), 1 / np.sqrt(samples.var(1, ddof=1) + EPSILON)
    u = (x - mean[:, None, None, None]) * scale[:, None, None, None]
    return u, np.stack([mean, scale], axis=1)


def activations(rng, shape, centred):
    """Draw activations of which no u is near 0 or +-1, unless it can be exact."""
    x = 0.7 * floats(rng, *shape) + np.float32(0.1)
    while True:
        u, _ = standardized(x, centred)
        near = np.abs(np.abs(u)[..., None] - [0, 1]).min(-1) < CLEARANCE
        if not near.any():
            break
        x = np.where(near, x + np.float32(8 * CLEARANCE), x)
    if not centred:
        some = rng.random(shape) < 0.05
        x = np.where(some, rng.choice(np.float32([0, -0.0, 1, -1]), shape), x)
    return x


def estimated(estimator, u, da):
    if estimator == ONE:
        return da
    if estimator == APPROX:
        return da * np.maximum(2 - 2 * np.abs(u), 0)
    return da * (np.abs(u) <= 1)


def standardized_back(u, moments, centred, du):
    if not centred:
        return du
    samples, u_ = du.reshape(len(du), -1), u.reshape(len(du), -1)
    mean, slant = samples.mean(1), (samples * u_).sum(1) / (u_.shape[1] - 1)
    dx = moments[:, 1:] * (samples - mean[:, None] - u_ * slant[:, None])
    return dx.reshape(u.shape)


def activated(activation, z, slope):
    if activation == PRELU:
        return np.where(z > 0, z, slope * z)
    return np.clip(z, -1, 1) if activation == HARD_TANH else z


def activated_back(activation, z, slope, dout):
    if activation == PRELU:
        return np.where(z > 0, dout, slope * dout)
    return dout * (np.abs(z) <= 1) if activation == HARD_TANH else dout


class Norm:
    """A batch norm of y, with shortcut, activation, and gradients by their definitions."""

    def __init__(self, rng, y, shortcut, activation):
        channels = y.shape[-1]
        centre, spread = y.reshape(-1, channels).mean(0), 1 + y.reshape(-1, channels).std(0)
        rows = floats(rng, 7, channels)
        rows[:2] = centre, rows[1] / spread
        # Rows of a norm's gradient with arbitrary values: scale, shift and slant.
        rows[4:] *= np.stack([1 / spread, 0.1 / spread, 0.1 / spread**2])
        self.rows, self.activation = rows, activation
        centre, gain, offset, self.slope, self.scale, self.shift, self.slant = np.float64(rows)
        self.centred = y - centre
        self.z = self.centred * gain + offset
        if shortcut is not None:
            self.z = self.z + shortcut

    def gradient_of_result(self, rng):
        """Draw a gradient that is 0 wherever rounding could decide."""
        g = floats(rng, *self.z.shape)
        edges = {NONE: [], PRELU: [0], HARD_TANH: [-1, 1]}[self.activation]
        for edge in edges:
            g[np.abs(self.z - edge) < CLEARANCE] = 0
        return g

    def forward(self):
        return activated(self.activation, self.z, self.slope)

    def dz(self, g):
        return activated_back(self.activation, self.z, self.slope, np.float64(g))

    def sums(self, g):
        dz = self.dz(g)
        by_slope = np.where(self.z > 0, 0, g * self.z) * (self.activation == PRELU)
        parts = (dz, dz * self.centred, by_slope)
        return np.stack([part.reshape(-1, part.shape[-1]).sum(0) for part in parts])

    def dy(self, g):
        return self.scale * self.dz(g) - self.shift - self.slant * self.centred


def binary_operands(rng, sizes, centred):
    """Return x, the kernel's code and scales; and in float64 u, moments, and sums of +-1."""
    x = activations(rng, sizes.image, centred)
    code = floats(rng, *sizes.shape())  # only its signs matter
    code[rng.random(code.shape) < 0.05] = 0
    scale = np.abs(floats(rng, sizes.kernel[2])) + np.float32(0.1)
    u, moments = standardized(x, centred)
    return x, code, scale, u, moments, convolve(signs(u), signs(code), sizes)


def conv_forward(sizes, centred, scaled):
    rng = random("forward", sizes)
    x, code, scale, _, moments, sums = binary_operands(rng, sizes, centred)
    result = {"moments": np.float32(moments)}
    if scaled:
        result["y"] = np.float32(sums * np.float64(scale))
    else:
        channels = np.float64(sums).reshape(-1, sums.shape[-1])
        statistics = np.stack([channels.mean(0), channels.var(0)])
        result |= {"sums": np.int16(sums), "statistics": np.float32(statistics)}
    return Case(
        f"conv_forward {sizes} centred {centred} scaled {scaled}",
        {**sizes.numbers(), "centred": centred},
        {"x": x, "code": code, "scale": scale},
        result,
    )


class NormBefore:
    """A norm whose results are x, as far as its activation can have such results."""

    def __init__(self, rng, x, activation, sums, least_slope):
        channels = x.shape[-1]
        self.y = floats(rng, *x.shape)
        if sums:
            self.y = rng.integers(-20, 20, x.shape).astype(np.int16)
        self.x, self.activation, self.rows = x, activation, floats(rng, 4, channels)
        self.rows[3] = np.abs(self.rows[3]) + np.float32(least_slope)
        if least_slope < 0:
            self.rows[3, ::2] = 0
        centre, gain, offset, self.slope = np.float64(self.rows)
        self.centred = self.y - centre
        z = np.float64(x)
        if activation == PRELU:
            z = np.where(x > 0, x, x / np.where(self.slope == 0, 1, self.slope))
        if activation == HARD_TANH or least_slope < 0:  # then the library computes z again
            edge = 1 if activation == HARD_TANH else 0
            z = np.where(np.abs(np.abs(z) - edge) < 8 * CLEARANCE, z + 32 * CLEARANCE, z)
        self.z = z
        self.shortcut = np.float32(z - self.centred * gain - offset)

    def given(self):
        shape = (len(self.x), -1, self.x.shape[-1])
        return {
            "before y": self.y.reshape(shape),
            "before shortcut": self.shortcut.reshape(shape),
            "before norm": self.rows,
        }

    def sums(self, dx):
        dz = activated_back(self.activation, self.z, self.slope, dx)
        by_slope = np.where(self.z > 0, 0, dx * self.z) * (self.activation == PRELU)
        parts = (dz, dz * self.centred, by_slope)
        return np.stack([part.reshape(-1, part.shape[-1]).sum(0) for part in parts])


def conv_forward_after(sizes, activation, sums):
    """Like `conv_forward`, with x computed from the norm before."""
    case = conv_forward(sizes, centred=True, scaled=False)
    x = case.given.pop("x")
    before = NormBefore(random("before", sizes, activation), x, activation, sums, 0.1)
    return case._replace(
        name=f"{case.name} after a norm with {ACTIVATIONS[activation]}",
        numbers={**case.numbers, "before_activation": activation},
        given={**case.given, **before.given()},
        expected={**case.expected, "x": x},
    )


def conv_backward_after(sizes, activation, shortcut, sums, least_slope=0.1):
    """Like `conv_backward`, with the sums of the gradient of the norm before."""
    case = conv_backward(sizes, True, APPROX, PRELU, shortcut)
    x, dx = case.given["x"], np.float64(case.expected["dx"])
    before = NormBefore(
        random("before", sizes, activation, shortcut), x, activation, sums, least_slope
    )
    return case._replace(
        name=f"{case.name} after a norm with {ACTIVATIONS[activation]}, slopes from {least_slope}",
        numbers={**case.numbers, "before_activation": activation},
        given={**case.given, **before.given()},
        expected={**case.expected, "before sums": np.float32(before.sums(dx))},
    )


def conv_backward(sizes, centred, estimator, activation=None, shortcut="none", times_scale=False):
    """With an activation, through a norm, whose shortcut is "none", an "array" or the "input".

    The kernel's gradient is that of the code times the scales, or with `times_scale` of the code.
    """
    rng = random("backward", sizes, centred, estimator, activation, shortcut)
    x, code, scale, u, moments, sums = binary_operands(rng, sizes, centred)
    given = {"shortcut": NOTHING, "sums": np.zeros(0, np.int16), "norm": NOTHING}
    result = {}
    if activation is None:
        given["g"] = dy = floats(rng, *sizes.result())
    else:
        more = {"none": None, "array": floats(rng, *sizes.result()), "input": x}[shortcut]
        norm = Norm(rng, sums, more, activation)
        given |= {"g": norm.gradient_of_result(rng), "sums": np.int16(sums), "norm": norm.rows}
        dy, dz = norm.dy(given["g"]), norm.dz(given["g"])
        if shortcut == "array":
            given["shortcut"] = more
            result["dshortcut"] = np.float32(dz)
    bits, values = np.float64(signs(u)), signs(code) * np.float64(scale)
    dkernel, da = convolve_back(bits, values, sizes, np.float64(dy))
    if times_scale:
        dkernel = dkernel * np.float64(scale)
    dx = standardized_back(u, moments, centred, estimated(estimator, u, da))
    if shortcut == "input":
        dx = dx + dz
    return Case(
        f"conv_backward {sizes} centred {centred} {ESTIMATORS[estimator]}"
        f" {ACTIVATIONS.get(activation, 'alone')} shortcut {shortcut} times scale {times_scale}",
        {
            **sizes.numbers(),
            "centred": centred,
            "estimator": estimator,
            "activation": activation or NONE,
            "shortcut_is_input": shortcut == "input",
            "times_scale": times_scale,
        },
        {"x": x, "code": code, "scale": scale, "moments": np.float32(moments), **given},
        {"kernel": np.float32(dkernel), "dx": np.float32(dx), **result},
    )


def binary_convolutions() -> Iterator[Case]:
    for index, sizes in enumerate(CONVOLUTIONS):
        # Every size in both ways, other options in turn; a sample of one number has no deviation.
        centred = index % 2 == 0
        yield conv_forward(sizes, centred, scaled=False)
        yield conv_forward(sizes, not centred, scaled=True)
        estimators = itertools.islice(itertools.cycle(ESTIMATORS), index, None)
        activations = itertools.islice(itertools.cycle(ACTIVATIONS), index, None)
        yield conv_backward(sizes, centred, next(estimators), times_scale=not centred)
        rest = next(estimators), next(activations), "array"
        yield conv_backward(sizes, not centred, *rest, times_scale=centred)
        yield conv_backward(sizes, centred, next(estimators), next(activations))
        if sizes.result() == sizes.image:
            yield conv_backward(sizes, centred, next(estimators), next(activations), "input")
    sizes = CONVOLUTIONS[0]
    for choice in itertools.product((True, False), ESTIMATORS, ACTIVATIONS, ("none", "input")):
        yield conv_backward(sizes, *choice)


def convolutions_after_norms() -> Iterator[Case]:
    for index, sizes in enumerate(CONVOLUTIONS):
        sums = index % 2 == 0
        for activation in (NONE, PRELU):
            yield conv_forward_after(sizes, activation, sums)
        shortcut = "input" if sizes.result() == sizes.image else "none"
        for activation in ACTIVATIONS:
            # The sum of a sample's dx is 0, which rounding does not leave to compare.
            if activation != NONE or sizes.image[3] > 1:
                yield conv_backward_after(sizes, activation, shortcut, sums)
        yield conv_backward_after(sizes, PRELU, shortcut, not sums, least_slope=-1)


def real_convolutions() -> Iterator[Case]:
    for sizes in (
        Sizes((5, 9, 8, 3), (3, 3, 16)),
        Sizes((2, 17, 15, 3), (7, 7, 64), 2),
        Sizes((3, 4, 5, 1), (1, 1, 80)),
        Sizes((1, 3, 2, 8), (5, 5, 144), 3),
        Sizes((40, 2, 2, 2), (2, 2, 32)),
        Sizes((2, 6, 9, 4), (3, 2, 48), 2, ((0, 1), (2, 0))),
    ):
        rng = random("real", sizes)
        x, kernel, g = (floats(rng, *s) for s in (sizes.image, sizes.shape(), sizes.result()))
        y = convolve(np.float64(x), np.float64(kernel), sizes)
        dkernel, _ = convolve_back(np.float64(x), np.float64(kernel), sizes, np.float64(g))
        numbers = sizes.numbers()
        yield Case(
            f"real_forward {sizes}", numbers, {"x": x, "kernel": kernel}, {"y": np.float32(y)}
        )
        yield Case(
            f"real_gradient {sizes}", numbers, {"x": x, "g": g}, {"kernel": np.float32(dkernel)}
        )


def norms() -> Iterator[Case]:
    choices = itertools.product(("f4", "i2"), ACTIVATIONS, (False, True))
    # Samples, pixels and channels, also more pixels and channels than are summed at once.
    shapes = [(4, 9, 16), (3, 70, 33), (1, 300, 5), (2, 1, 1), (2, 3, 1100), (5, 64, 64)]
    for (dtype, activation, has_shortcut), shape in itertools.product(choices, shapes):
        rng = random("norm", dtype, activation, has_shortcut, shape)
        y = floats(rng, *shape) + np.float32(0.5)
        if dtype == "i2":
            y = np.int16(20 * y)
        wide = np.float64(y)
        shortcut = floats(rng, *shape) if has_shortcut else None
        norm = Norm(rng, wide, shortcut, activation)
        g = norm.gradient_of_result(rng)
        channels = wide.reshape(-1, shape[-1])
        expected = {
            "statistics": np.stack([channels.mean(0), channels.var(0)]),
            "out": norm.forward(),
            "sums": norm.sums(g),
            "dy": norm.dy(g),
        }
        if has_shortcut:
            expected["dshortcut"] = norm.dz(g)
        yield Case(
            f"norm {dtype} {ACTIVATIONS[activation]} {shape} shortcut {has_shortcut}",
            {"activation": activation},
            {"y": y, "g": g, "shortcut": NOTHING if shortcut is None else shortcut,
             "norm": norm.rows},
            {name: np.float32(x) for name, x in expected.items()},
        )  # fmt: skip


def poolings() -> Iterator[Case]:
    for image, window, strides, padding in (
        ((2, 7, 8, 64), (3, 3), (2, 2), ((1, 1), (1, 1))),
        ((3, 4, 6, 37), (2, 2), (2, 2), ((0, 0), (0, 0))),
        ((1, 5, 3, 3), (4, 2), (1, 3), ((3, 0), (0, 1))),
    ):
        rng = random("pool", *image)
        x = np.round(2 * rng.standard_normal(image).astype(np.float32)) / 2
        padded = np.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-np.inf)
        windows = np.lib.stride_tricks.sliding_window_view(padded, window, (1, 2))
        windows = windows[:, :: strides[0], :: strides[1]]
        windows = windows.reshape(*windows.shape[:4], -1)
        which = windows.argmax(-1)
        g = floats(rng, *which.shape)
        dx = np.zeros(padded.shape)
        for at in np.ndindex(which.shape):
            down, right = divmod(which[at], window[1])
            row, column = at[1] * strides[0] + down, at[2] * strides[1] + right
            dx[at[0], row, column, at[3]] += g[at]
        (top, _), (left, _) = padding
        yield Case(
            f"pool {image} {window}",
            {
                "down": window[0],
                "across": window[1],
                "row_stride": strides[0],
                "column_stride": strides[1],
                "top": top,
                "left": left,
            },
            {"x": x, "g": g},
            {
                "y": windows.max(-1),
                "which": which.astype(np.uint8),
                "dx": np.float32(dx[:, top:, left:][:, : image[1], : image[2]]),
            },
        )


def magnitudes(rng, *shape):
    """Draw numbers with ties, zeros, subnormals, infinity and NaN."""
    x = np.abs(floats(rng, *shape))
    special = rng.choice(np.float32([0, 2**-149, 0.5, 0.5, 1, 2**127, np.inf, np.nan]), shape)
    return np.where(rng.random(shape) < 0.4, special, x)


def selections() -> Iterator[Case]:
    for rows, columns in ((1, 1), (7, 3), (144, 16), (100, 33), (27, 70), (1000, 5)):
        rng = random("exceeds", rows, columns)
        x = magnitudes(rng, rows, columns)
        ranks = rng.integers(-1, rows, columns).astype(np.int32)
        ranks[[0, -1]] = rows - 1, -1
        keys = x.view(np.int32)
        least = np.where(ranks < 0, 0, np.take_along_axis(np.sort(keys, axis=0), ranks[None], 0))
        yield Case(
            f"exceeds_kth {rows}x{columns}", {}, {"x": x, "ranks": ranks}, {"exceeds": keys > least}
        )
    for length in (1, 50, 3000, 2**16, 2**17 + 5):
        rng = random("kth", length)
        x = magnitudes(rng, length)
        ranks = rng.integers(0, length, 4).astype(np.int32)
        ranks[:2] = 0, length - 1
        # As bits, since NaN must be the same NaN.
        found = np.sort(x.view(np.int32))[ranks]
        yield Case(f"kth_of_all {length}", {}, {"x": x, "ranks": ranks}, {"found": found})


def latent_kernels() -> Iterator[Case]:
    # Fewer filters than lanes of a vector, and more than a block of 64; more rows than a part.
    for rows, filters in ((3, 1), (9, 5), (144, 16), (27, 67), (300, 130), (4608, 48)):
        rng = random("latent", rows, filters)
        w = floats(rng, rows, filters) + np.float32(0.2)
        rank = (rows - 1) // 2
        while True:  # until no magnitude is near 0, or near the one that it is compared with
            mean, deviation = np.float64(w).mean(0), np.sqrt(np.float64(w).var(0, ddof=1) + EPSILON)
            u = (w - mean) / deviation
            median = np.sort(np.abs(u), axis=0)[rank]
            near = (np.abs(np.abs(u) - median) < CLEARANCE / 10) & (np.abs(u) != median)
            near |= np.abs(u) < CLEARANCE
            if not near.any():
                break
            w = np.where(near, floats(rng, rows, filters), w)
        g = floats(rng, rows, filters)
        du = g * np.where(u >= 0, 1, -1)
        dw = (du - du.mean(0) - u * (du * u).sum(0) / (rows - 1)) / deviation
        moments = np.float32([mean, deviation])
        yield Case(
            f"magnitude_code {rows}x{filters}",
            {"rank": rank},
            {"w": w, "g": g, "given moments": moments},
            {
                "code": np.where(np.abs(u) > median, 1, -1).astype(np.float32),
                "moments": moments,
                "dw": np.float32(dw)[None],  # compared as a whole, not row by row
            },
        )

        magnitude = np.sort(np.abs(w - mean), axis=None)
        low, high = int(0.1 * (w.size - 1)), int(0.9 * (w.size - 1))
        ranks = np.int32([low, high, low + 1, high + 1])
        weights = np.float32([0.25, 0.75])
        low, high = magnitude[ranks[:2]] * (1 - weights) + magnitude[ranks[2:]] * weights
        projected = np.sign(w - mean) * np.clip(np.abs(w - mean), low, high)
        yield Case(
            f"project {rows}x{filters}",
            {},
            {"w": w, "ranks": ranks, "weights": weights},
            {"projected": np.float32(projected)[None]},
        )


def packed_words(bits):
    """Pack bits `[..., n]` into words `[..., ceil(n / 32)]`."""
    octets = np.packbits(bits, axis=-1, bitorder="little")
    octets = np.pad(octets, [(0, 0)] * (bits.ndim - 1) + [(0, -octets.shape[-1] % 4)])
    return np.ascontiguousarray(octets).view("<u4")


def packed_convolutions() -> Iterator[Case]:
    for sizes in (
        Sizes((2, 5, 6, 64), (3, 3, 16)),
        Sizes((3, 7, 4, 45), (3, 3, 80), 2),
        Sizes((1, 2, 3, 7), (5, 4, 48), 1, ((3, 3), (2, 5))),
        Sizes((2, 4, 5, 1100), (3, 3, 144)),
        Sizes((1, 9, 9, 32), (7, 7, 64), 3),
        Sizes((5, 1, 1, 130), (1, 1, 16)),
    ):
        rng = random("bits", sizes)
        bits, kernel = rng.random(sizes.image) < 0.5, rng.random(sizes.shape()) < 0.5
        code = np.where(kernel, 1, -1)
        sums = code.sum(2).cumsum(0).cumsum(1)
        words = np.moveaxis(packed_words(np.moveaxis(kernel, 2, -1)), -1, 2)
        padded = np.pad(bits, ((0, 0), *sizes.around(), (0, 0)))
        yield Case(
            f"bits {sizes}",
            sizes.numbers(),
            {
                "bits": bits,
                "kernel": words,
                "corner_sums": np.int32(np.pad(sums, ((1, 0), (1, 0), (0, 0)))),
            },
            {
                "padded": packed_words(padded),
                "y": np.int32(convolve(np.where(bits, 1, -1), code, sizes)),
            },
        )


def network_case(name, operations, images, expected) -> Case:
    """Record a network of `siman.h`; `expected` is the result of its last operation."""
    given = {"images": images}
    for place, (kind, inputs, numbers, weights) in enumerate(operations):
        given[f"kind {place}"] = np.frombuffer(kind.encode(), np.uint8)
        given[f"inputs {place}"] = np.int64(inputs)
        given[f"numbers {place}"] = np.int64(numbers)
        given[f"weights {place}"] = np.zeros(len(weights), np.uint8)
        for index, weight in enumerate(weights):
            if weight is not None:
                given[f"weight {place} {index}"] = weight
    expected = np.float32(expected).reshape(len(images), -1)
    return Case(
        f"network {name}", {"operations": len(operations)}, given, {"results": expected[None]}
    )


def planned_networks() -> Iterator[Case]:
    """Networks of all operations, each with the first images for which rounding decides no bit."""
    # With so many weights, a thread computes several images together.
    build = native_networks.Builder((8, 9, 64))
    x = build.conv(0, 96, strides=(2, 1), padding=(2, 1, 3, 3), groups=2)
    more = build.conv(0, 96, strides=(2, 1), padding=(2, 1, 3, 3))
    build.clip(build.prelu(build.add("add", [more, build.affine(x)])), -0.5, 2)
    images = floats(random("network", "heavy"), 7, *build.shapes[0])
    *_, expected = native_networks.results(build.operations, images)
    yield network_case("heavy", build.operations, images, expected)
    builds = {"every_kind": native_networks.every_kind()}
    for seed in range(24):
        builds[f"{seed}"] = native_networks.random_network(seed, 14)
        # Of every second one, all operations; of the others, more are fused.
        if seed % 2:
            native_networks.join_ends(builds[f"{seed}"])
    for name, build in builds.items():
        rng = random("network", name)
        for _ in range(20):
            images = floats(rng, 5, *build.shapes[0])
            try:
                *_, expected = native_networks.results(build.operations, images)
            except native_networks.Undecided:
                continue
            yield network_case(name, build.operations, images, expected)
            break


def write(file: BinaryIO, cases: list[Case]) -> None:
    def integer(number: int) -> None:
        file.write(struct.pack("<q", number))

    def string(text: bytes) -> None:
        integer(len(text))
        file.write(text)

    integer(len(cases))
    for case in cases:
        string(case.name.encode())
        integer(len(case.numbers))
        for name, number in case.numbers.items():
            string(name.encode())
            integer(number)
        arrays = case.given | {f"expected {name}": x for name, x in case.expected.items()}
        integer(len(arrays))
        for name, x in arrays.items():
            string(name.encode())
            string(x.dtype.str[1:].encode())
            integer(x.ndim)
            for size in x.shape:
                integer(size)
            string(np.ascontiguousarray(x).tobytes())


def all_cases() -> list[Case]:
    parts = (
        binary_convolutions, convolutions_after_norms, real_convolutions, norms, poolings,
        selections, latent_kernels, packed_convolutions, planned_networks,
    )  # fmt: skip
    return [case for part in parts for case in part()]


if __name__ == "__main__":
    with open(sys.argv[1], "wb") as file:
        write(file, all_cases())
