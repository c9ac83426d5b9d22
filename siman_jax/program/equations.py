"""Read each equation of a jaxpr as an operation.

A function here takes the reader, the equation and the values of its inputs, of which at least one
depends on the images. It returns the value of the result, or a list of several.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from siman_jax.models.batch_norm import per_channel
from siman_jax.program import operations as op
from siman_jax.program.bits import pack
from siman_jax.program.reader import Exponential, Function, Reader, Result, Test, depends, scalar
from siman_jax.rules import filter_scales
from siman_jax.rules.marks import BINARY_CONV, MARK, SIGNS

READERS: dict[str, Function] = {}


def _reads(*names: str) -> Callable[[Function], Function]:
    def register(function: Function) -> Function:
        READERS.update(dict.fromkeys(names, function))
        return function

    return register


# Marks, products ----------------------------------------------------------------------------------


@_reads(MARK.name)
def _mark(reader: Reader, equation: JaxprEqn, inputs: list[Any]) -> Result:
    name, settings = equation.params["name"], dict(equation.params["settings"])
    x = reader.result(inputs[0])
    if name == SIGNS:
        about = None if settings["centred"] else np.zeros(reader.shape(x)[-1:], np.float32)
        return reader.add(op.Signs, x, threshold=about)
    _, kernel, alpha = inputs
    if isinstance(kernel, Result) or isinstance(alpha, Result):
        raise reader.refusal("the kernel of a binary layer depends on the images")
    scales = filter_scales(kernel) if settings["scaled"] else jnp.ones(kernel.shape[-1])
    if alpha.size:
        scales = scales * alpha
    # A filter with a negative scale has its bits inverted, so that the scale may follow a max pool.
    bits = (kernel > 0) ^ per_channel(scales < 0, kernel > 0)
    words = jnp.moveaxis(pack(jnp.moveaxis(bits, -2, -1)), -1, -2)
    if name == BINARY_CONV:
        strides, padding = (settings["strides"],) * 2, settings["padding"]
        y = reader.add(op.BinaryConv, x, words=words, strides=strides, padding=padding)
    else:
        y = reader.add(op.BinaryDense, x, words=words)
    if not (settings["scaled"] or alpha.size):
        return y
    return reader.add(op.Affine, y, scale=jnp.abs(scales).astype(jnp.float32))


_NHWC = (0, 3, 1, 2)


@_reads("conv_general_dilated")
def _conv(reader: Reader, equation: JaxprEqn, inputs: list[Any]) -> Result:
    x, kernel = inputs
    params = equation.params
    layout = params["dimension_numbers"]
    if not isinstance(x, Result) or isinstance(kernel, Result):
        raise reader.refusal("it convolves with a kernel that depends on the images")
    if len(layout.lhs_spec) != 4 or layout.lhs_spec != _NHWC or layout.out_spec != _NHWC:
        raise reader.refusal(
            "its convolution is not of images with axes batch, height, width, channels"
        )
    if set(params["lhs_dilation"]) != {1}:
        raise reader.refusal("it computes a transposed convolution")
    if params["batch_group_count"] != 1:
        raise reader.refusal("its convolution has groups of the batch")
    places = layout.rhs_spec
    return reader.add(
        op.Conv,
        x,
        kernel=jnp.transpose(kernel, (places[2], places[3], places[1], places[0])),
        strides=tuple(params["window_strides"]),
        padding=tuple((int(before), int(after)) for before, after in params["padding"]),
        dilation=tuple(params["rhs_dilation"]),
        groups=params["feature_group_count"],
    )


@_reads("dot_general")
def _dense(reader: Reader, equation: JaxprEqn, inputs: list[Any]) -> Result:
    x, kernel = inputs
    (of_x, of_kernel), batches = equation.params["dimension_numbers"]
    if not isinstance(x, Result) or isinstance(kernel, Result):
        raise reader.refusal("it multiplies by a matrix that depends on the images")
    rank = len(reader.shape(x)) + 1
    last = tuple(range(rank - len(of_x), rank))
    order = sorted(range(len(of_x)), key=lambda i: of_x[i])
    if any(batches) or tuple(of_x[i] for i in order) != last or 0 in last:
        raise reader.refusal("its product does not sum over the last axes")
    summed = tuple(of_kernel[i] for i in order)
    rest = [axis for axis in range(kernel.ndim) if axis not in summed]
    sizes = tuple(kernel.shape[axis] for axis in rest)
    matrix = jnp.transpose(kernel, (*summed, *rest)).reshape(-1, math.prod(sizes))
    if len(last) > 1:
        shape = reader.shape(x)[: rank - 1 - len(last)]
        x = reader.add(op.Reshape, x, shape=(*shape, matrix.shape[0]))
    y = reader.add(op.Dense, x, kernel=matrix)
    shape = (*reader.shape(y)[:-1], *sizes)
    return y if len(sizes) == 1 else reader.add(op.Reshape, y, shape=shape)


# Pools and sums -----------------------------------------------------------------------------------


@_reads("reduce_window_sum", "reduce_window_max")
def _pool(reader: Reader, equation: JaxprEqn, inputs: list[Any]) -> Result:
    (x,) = inputs
    params = equation.params
    window, strides = params["window_dimensions"], params["window_strides"]
    padding = tuple((int(before), int(after)) for before, after in params["padding"])
    dilated = {*params["base_dilation"], *params["window_dilation"]} != {1}
    outside = (window[0], window[-1], strides[0], strides[-1]) != (1, 1, 1, 1)
    if len(window) != 4 or dilated or outside or padding[0] != (0, 0) or padding[3] != (0, 0):
        raise reader.refusal("its pool is not of height and width, or is dilated")
    kind = op.SumPool if equation.primitive.name == "reduce_window_sum" else op.MaxPool
    x = reader.result(x)
    return reader.add(
        kind, x, window=tuple(window[1:3]), strides=tuple(strides[1:3]), padding=padding[1:3]
    )


@_reads("reduce_sum", "reduce_max")
def _reduce(reader: Reader, equation: JaxprEqn, inputs: list[Any]) -> Any:
    (x,) = inputs
    axes = tuple(axis - 1 for axis in equation.params["axes"])
    if isinstance(x, Exponential) and axes == (len(reader.shapes[x.place]) - 1,):
        return replace(x, total=True)
    kind = op.Sum if equation.primitive.name == "reduce_sum" else op.Max
    return reader.add(kind, reader.result(x), axes=axes)


# One number at a time -----------------------------------------------------------------------------


@_reads("add", "add_any", "sub", "mul", "div", "max", "min", "neg", "abs", "square", "integer_pow")
def _arithmetic(reader: Reader, equation: JaxprEqn, inputs: list[Any]) -> Any:
    name = equation.primitive.name
    if name == "div" and all(isinstance(x, Exponential) for x in inputs):
        over, under = inputs
        if (over.place, over.total, under.total) == (under.place, False, True):
            return reader.add(op.Softmax, Result(over.place))
    x = inputs[0]
    if name in ("square", "integer_pow"):
        if name == "integer_pow" and equation.params["y"] != 2:
            raise reader.refusal(f"it raises activations to the power {equation.params['y']}")
        x = reader.result(x)
        return reader.add(op.Multiply, x, x)
    if name in ("neg", "abs"):
        x = reader.result(x)
        minus = reader.per_channel(-1.0, reader.shape(x))
        if name == "neg":
            return reader.add(op.Affine, x, scale=minus)
        return reader.add(op.PReLU, x, slope=minus)
    if name in ("max", "min"):
        return _clip(reader, name, inputs)
    shape = _aval(equation.outvars[0]).shape[1:]
    a, b = inputs
    if depends(a) and depends(b):
        return _of_two(reader, name, reader.result(a), reader.result(b))
    swapped = not depends(a)
    x, other = (reader.result(b), a) if swapped else (reader.result(a), b)
    if name == "div":
        if swapped:
            raise reader.refusal("it divides by activations")
        name, other = "mul", 1 / other
    if name == "sub":
        if swapped:
            minus = reader.per_channel(-1.0, reader.shape(x))
            x = reader.add(op.Affine, x, scale=minus)
        name, other = "add", other if swapped else -other
    each = reader.per_channel(other, reader.shape(x)) if shape == reader.shape(x) else None
    if each is not None:
        return reader.add(op.Affine, x, **{"mul": {"scale": each}}.get(name, {"shift": each}))
    kind = op.Multiply if name == "mul" else op.Add
    return reader.add(kind, x, reader.result(other, reader.shape(x)))


def _of_two(reader: Reader, name: str, a: Result, b: Result) -> Result:
    if name == "div":
        raise reader.refusal("it divides by activations")
    if name == "sub":
        b = reader.add(op.Affine, b, scale=reader.per_channel(-1.0, reader.shape(b)))
    return reader.add(op.Multiply if name == "mul" else op.Add, a, b)


def _clip(reader: Reader, name: str, inputs: list[Any]) -> Result:
    x, bound = inputs if isinstance(inputs[0], Result) else inputs[::-1]
    limit = scalar(bound)
    if not isinstance(x, Result) or limit is None:
        raise reader.refusal(f"it computes {name} of activations and an array of several numbers")
    if limit == (-math.inf if name == "max" else math.inf):  # as in jax.nn.softmax
        return x
    low, high = (limit, math.inf) if name == "max" else (-math.inf, limit)
    return reader.add(op.Clip, x, low=low, high=high)


@_reads("logistic")
def _sigmoid(reader: Reader, equation: JaxprEqn, inputs: list[Any]) -> Result:
    return reader.add(op.Sigmoid, reader.result(inputs[0]))


@_reads("tanh")
def _tanh(reader: Reader, equation: JaxprEqn, inputs: list[Any]) -> Result:
    return reader.add(op.Tanh, reader.result(inputs[0]))


@_reads("exp")
def _exponential(reader: Reader, equation: JaxprEqn, inputs: list[Any]) -> Exponential:
    return Exponential(reader.result(inputs[0]).place)


@_reads("ge", "gt", "le", "lt")
def _test(reader: Reader, equation: JaxprEqn, inputs: list[Any]) -> Test:
    name = equation.primitive.name
    x, than = inputs
    above = name in ("ge", "gt")
    if not isinstance(x, Result):
        x, than, above = than, x, not above
    if not isinstance(x, Result) or depends(than):
        raise reader.refusal("it compares activations with activations")
    return Test(x.place, than, above, strict=name in ("gt", "lt"))


@_reads("not")
def _not(reader: Reader, equation: JaxprEqn, inputs: list[Any]) -> Test:
    return _opposite(inputs[0])


def _opposite(test: Test) -> Test:
    return replace(test, above=not test.above, strict=not test.strict)


@_reads("select_n")
def _select(reader: Reader, equation: JaxprEqn, inputs: list[Any]) -> Result:
    test, *cases = inputs
    if not isinstance(test, Test) or len(cases) != 2:
        raise reader.refusal("it selects by something else than one comparison with numbers")
    above, below = cases[::-1] if test.above else cases
    x, than = Result(test.place), scalar(test.than)
    high, low = scalar(above), scalar(below)
    if high is not None and low is not None:
        signs = reader.signs(
            test if test.above else replace(test, above=True, strict=not test.strict)
        )
        if (high, low) == (1, -1):
            return signs
        half = partial(reader.per_channel, shape=reader.shape(signs))
        return reader.add(
            op.Affine, signs, scale=half((high - low) / 2), shift=half((high + low) / 2)
        )
    if than is not None and isinstance(above, Result) and above == x:
        if low == than:  # below the bound, the bound itself
            return reader.add(op.Clip, x, low=than, high=math.inf)
        slope = _slope(reader, below, x)
        if than == 0 and slope is not None:
            return reader.add(op.PReLU, x, slope=slope)
    if than is not None and high == than and _keeps(reader, below, x, than):
        return reader.add(op.Clip, below, low=-math.inf, high=than)
    if than is not None and low == than and _keeps(reader, above, x, than):
        return reader.add(op.Clip, above, low=than, high=math.inf)
    raise reader.refusal("it selects between activations in a way that is not a known activation")


def _slope(reader: Reader, y: Any, x: Result) -> Any:
    """Return the scales if y is x times a number per channel, else None."""
    made = reader.operations[y.place] if isinstance(y, Result) else None
    if isinstance(made, op.Affine) and made.inputs == (x.place,) and made.shift is None:
        return made.scale
    return None


def _keeps(reader: Reader, y: Any, x: Result, bound: float) -> bool:
    """Tell whether y is x, or x clipped to limits with `bound` between them."""
    if not isinstance(y, Result):
        return False
    made = reader.operations[y.place]
    if isinstance(made, op.Clip) and made.inputs == (x.place,):
        return made.low <= bound <= made.high
    return y == x


# Places -------------------------------------------------------------------------------------------


@_reads("reshape")
def _reshape(reader: Reader, equation: JaxprEqn, inputs: list[Any]) -> Any:
    if equation.params.get("dimensions") is not None:
        raise reader.refusal("its reshape permutes axes")
    return reader.add(
        op.Reshape, reader.result(inputs[0]), shape=tuple(equation.params["new_sizes"][1:])
    )


@_reads("squeeze", "expand_dims")
def _squeeze(reader: Reader, equation: JaxprEqn, inputs: list[Any]) -> Result:
    return reader.add(
        op.Reshape, reader.result(inputs[0]), shape=tuple(_aval(equation.outvars[0]).shape[1:])
    )


@_reads("broadcast_in_dim")
def _broadcast(reader: Reader, equation: JaxprEqn, inputs: list[Any]) -> Any:
    x, shape = inputs[0], tuple(equation.params["shape"])
    axes = equation.params["broadcast_dimensions"]
    if isinstance(x, Exponential) and x.total and shape[-1] == 1:
        return x
    x = reader.result(x)
    if axes[0] != 0:
        raise reader.refusal("it moves the images of a batch")
    size = (reader.batch, *reader.shape(x))
    aligned = [1] * len(shape)
    for axis, n in zip(axes, size, strict=True):
        aligned[axis] = n
    if tuple(aligned[1:]) != reader.shape(x):
        x = reader.add(op.Reshape, x, shape=tuple(aligned[1:]))
    return x if tuple(aligned) == shape else reader.add(op.Broadcast, x, shape=shape[1:])


@_reads("transpose")
def _transpose(reader: Reader, equation: JaxprEqn, inputs: list[Any]) -> Result:
    first, *rest = equation.params["permutation"]
    if first != 0:
        raise reader.refusal("it moves the images of a batch")
    return reader.add(op.Transpose, reader.result(inputs[0]), axes=tuple(a - 1 for a in rest))


@_reads("concatenate")
def _concatenate(reader: Reader, equation: JaxprEqn, inputs: list[Any]) -> Result:
    axis = equation.params["dimension"] - 1
    return reader.add(op.Concatenate, *map(reader.result, inputs), axis=axis)


@_reads("pad")
def _pad(reader: Reader, equation: JaxprEqn, inputs: list[Any]) -> Result:
    x, value = inputs
    number, (batch, *rest) = scalar(value), equation.params["padding_config"]
    if number is None or tuple(batch) != (0, 0, 0) or any(inner for _, _, inner in rest):
        raise reader.refusal("it pads between numbers, with several numbers, or along the batch")
    return reader.add(
        op.Pad,
        reader.result(x),
        before=tuple(before for before, _, _ in rest),
        after=tuple(after for _, after, _ in rest),
        value=number,
    )


@_reads("slice")
def _slice(reader: Reader, equation: JaxprEqn, inputs: list[Any]) -> Result:
    params, x = equation.params, reader.result(inputs[0])
    strides = params["strides"] or (1,) * len(params["start_indices"])
    return _part(reader, x, params["start_indices"], params["limit_indices"], strides)


@_reads("dynamic_slice")
def _dynamic_slice(reader: Reader, equation: JaxprEqn, inputs: list[Any]) -> Result:
    x, *given = inputs
    starts = [scalar(start) for start in given]
    if not isinstance(x, Result) or None in starts:
        raise reader.refusal("it takes a part of activations that depends on the images")
    sizes = equation.params["slice_sizes"]
    shape = (reader.batch, *reader.shape(x))
    begin = [
        min(max(int(start or 0), 0), n - size)
        for start, n, size in zip(starts, shape, sizes, strict=True)
    ]
    stop = [start + size for start, size in zip(begin, sizes, strict=True)]
    return _part(reader, x, begin, stop, (1,) * len(begin))


@_reads("split")
def _split(reader: Reader, equation: JaxprEqn, inputs: list[Any]) -> list[Result]:
    x, axis = reader.result(inputs[0]), equation.params["axis"]
    begin, stop = [0] * (len(reader.shape(x)) + 1), [reader.batch, *reader.shape(x)]
    parts = []
    for size in equation.params["sizes"]:
        stop[axis] = begin[axis] + int(size)
        parts.append(_part(reader, x, begin, stop, (1,) * len(begin)))
        begin[axis] = stop[axis]
    return parts


def _part(
    reader: Reader, x: Result, begin: Sequence[int], stop: Sequence[int], strides: Sequence[int]
) -> Result:
    if (begin[0], stop[0], strides[0]) != (0, reader.batch, 1):
        raise reader.refusal("it takes some images of a batch")
    starts, stops, steps = (tuple(map(int, sizes[1:])) for sizes in (begin, stop, strides))
    if (starts, stops, set(steps)) == ((0,) * len(starts), reader.shape(x), {1}):
        return x
    return reader.add(op.Slice, x, starts=starts, stops=stops, strides=steps)


# The same numbers ---------------------------------------------------------------------------------


@_reads("copy", "copy_p", "stop_gradient", "optimization_barrier", "name")
def _same(reader: Reader, equation: JaxprEqn, inputs: list[Any]) -> Any:
    return list(inputs)


@_reads("convert_element_type")
def _convert(reader: Reader, equation: JaxprEqn, inputs: list[Any]) -> Any:
    (x,) = inputs
    before, after = _aval(equation.invars[0]).dtype, equation.params["new_dtype"]
    if jnp.issubdtype(before, jnp.floating) and not jnp.issubdtype(after, jnp.floating):
        raise reader.refusal(f"it rounds activations to {after}")
    return x if after == jnp.bool_ else reader.result(x)


def _aval(variable: Any) -> Any:
    return variable.aval
