"""Programs of this project as networks of OpenVINO, with OpenVINO's own 1-bit convolution.

No framework converts to that convolution, so its networks have to be built by hand, as here: each
operation of a program becomes one or two of OpenVINO's, with the same weights. Numbers are in
OpenVINO's order, `[batch, channels, height, width]`. Its 1-bit convolution needs a fixed number of
images in a call, which `Model.reshape` sets.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from openvino import opset13 as ops

from siman_jax.program import operations as op
from siman_jax.program.operations import WORD_BITS, Program

_FIRST_CHANNELS = (2, 0, 1)  # the axes of an image, in OpenVINO's order


def with_fixed_thresholds(program: Program) -> Program:
    """Return the same program with signs about zero, not about the mean of each sample.

    OpenVINO then needs no means, and joins the signs to the convolution before them.
    """

    def fixed(operation: op.Operation, channels: int) -> op.Operation:
        if isinstance(operation, op.Signs):
            return replace(operation, threshold=np.zeros(channels, np.float32))
        return operation

    operations = (
        fixed(operation, shape[-1] if shape else 1)
        for operation, shape in zip(program.operations, program.shapes(), strict=True)
    )
    return replace(program, operations=tuple(operations))


def write(program: Program, path: Path) -> None:
    """Write the network for OpenVINO: `path` ends in .xml, and the weights are in .bin beside it.

    Args:
      program: its signs go to binary convolutions alone.
      path: of the file.

    Raises:
      NotImplementedError: an operation cannot be built in OpenVINO here.
    """
    network = _Network(program)
    for operation, shape in zip(program.operations, network.shapes, strict=True):
        translation = _TRANSLATIONS.get(type(operation))
        if translation is None:
            raise NotImplementedError(f"cannot build {type(operation).__name__} in OpenVINO")
        network.nodes.append(translation(network, operation, shape))
    model = openvino.Model([network.nodes[program.result]], [network.nodes[0]], "packed")
    openvino.save_model(model, path, compress_to_fp16=False)


class _Network:
    """The part of a network that is built so far.

    Attributes:
      shapes: of the program's results.
      nodes: of OpenVINO, for each operation so far.
      bits: packed arrays, whose memory constants of the network use.
    """

    def __init__(self, program: Program) -> None:
        self.shapes = program.shapes()
        self.nodes: list[Any] = []
        self.bits: list[np.ndarray] = []
        self._program = program

    def operands(self, operation: op.Operation) -> list[Any]:
        return [self.nodes[place] for place in operation.inputs]

    def shape_of_operand(self, operation: op.Operation) -> op.Shape:
        return self.shapes[operation.inputs[0]]

    def operand_is_signs(self, operation: op.Operation) -> bool:
        return isinstance(self._program.operations[operation.inputs[0]], op.Signs)


def _numbers(array: Any) -> Any:
    return ops.constant(np.array(array, np.float32, order="C"))


def _integers(numbers: Any) -> Any:
    return ops.constant(np.array(numbers, np.int64))


def _by_channel(array: np.ndarray, shape: op.Shape) -> Any:
    """Return `[channels]` so that it fits numbers of a shape."""
    return _numbers(array.reshape(1, -1, *[1] * (len(shape) - 1)))


def _axes(axes: tuple[int, ...], shape: op.Shape) -> Any:
    """Return OpenVINO's axes for a program's."""
    order = _FIRST_CHANNELS if len(shape) == 3 else tuple(range(len(shape)))
    return _integers(sorted(1 + order.index(axis) for axis in axes))


def _begins_and_ends(padding: Any) -> tuple[list[int], list[int]]:
    return [before for before, _ in padding], [after for _, after in padding]


def _images(network: _Network, images: op.Images, shape: op.Shape) -> Any:
    height, width, channels = shape
    return ops.parameter([-1, channels, height, width], np.float32, "images")


def _conv(network: _Network, conv: op.Conv, shape: op.Shape) -> Any:
    if conv.groups != 1:
        raise NotImplementedError("cannot build convolutions in groups in OpenVINO")
    (x,) = network.operands(conv)
    kernel = _numbers(conv.kernel.transpose(3, 2, 0, 1))
    padding = _begins_and_ends(conv.padding)
    return ops.convolution(x, kernel, list(conv.strides), *padding, list(conv.dilation))


def _binary_conv(network: _Network, conv: op.BinaryConv, shape: op.Shape) -> Any:
    if not network.operand_is_signs(conv):
        raise NotImplementedError("cannot build binary weights with real activations in OpenVINO")
    (x,) = network.operands(conv)
    channels = network.shape_of_operand(conv)[-1]
    places = np.arange(WORD_BITS, dtype=np.uint32)
    bits = (conv.words[:, :, :, None] >> places[:, None]) & 1
    bits = bits.reshape(*conv.words.shape[:2], -1, conv.words.shape[3])[:, :, :channels]
    bits = np.ascontiguousarray(bits.transpose(3, 2, 0, 1))
    packed = np.packbits(bits.astype(np.uint8).reshape(-1), bitorder="little")
    network.bits.append(packed)
    tensor = openvino.Tensor(packed, openvino.Shape(list(bits.shape)), openvino.Type.u1)
    padding = _begins_and_ends(conv.padding)
    # A pad value of 0 leaves padding out of the sum.
    return ops.binary_convolution(
        x,
        openvino.op.Constant(tensor),
        list(conv.strides),
        *padding,
        [1, 1],
        "xnor-popcount",
        0.0,
    )


def _signs(network: _Network, signs: op.Signs, shape: op.Shape) -> Any:
    (x,) = network.operands(signs)
    threshold = signs.threshold
    if threshold is None:
        mean = ops.reduce_mean(x, _integers(range(1, 1 + len(shape))), keep_dims=True)
        x, threshold = ops.subtract(x, mean), np.zeros(shape[-1], np.float32)
    # It gives +1 above a threshold, and a program also at the threshold. Numbers below the smallest
    # normal one count as 0.
    below = np.nextafter(threshold, np.float32(-np.inf))
    about = _by_channel(np.where(threshold == 0, -np.finfo(np.float32).tiny, below), shape)
    zero, one = (_numbers(np.full((1,) * (1 + len(shape)), x)) for x in (0, 1))
    return ops.fake_quantize(x, about, about, zero, one, 2)


def _dense(network: _Network, dense: op.Dense, shape: op.Shape) -> Any:
    (x,) = network.operands(dense)
    if len(shape) != 1:
        raise NotImplementedError("cannot build products of images in OpenVINO")
    return ops.matmul(x, _numbers(dense.kernel), False, False)


def _max_pool(network: _Network, pool: op.MaxPool, shape: op.Shape) -> Any:
    (x,) = network.operands(pool)
    padding = _begins_and_ends(pool.padding)
    return ops.max_pool(x, list(pool.strides), [1, 1], *padding, list(pool.window)).output(0)


def _sum(network: _Network, total: op.Sum, shape: op.Shape) -> Any:
    (x,) = network.operands(total)
    return ops.reduce_sum(x, _axes(total.axes, network.shape_of_operand(total)), keep_dims=False)


def _affine(network: _Network, affine: op.Affine, shape: op.Shape) -> Any:
    (x,) = network.operands(affine)
    if affine.scale is not None:
        x = ops.multiply(x, _by_channel(affine.scale, shape))
    return x if affine.shift is None else ops.add(x, _by_channel(affine.shift, shape))


def _prelu(network: _Network, prelu: op.PReLU, shape: op.Shape) -> Any:
    (x,) = network.operands(prelu)
    return ops.prelu(x, _numbers(prelu.slope))


def _clip(network: _Network, clip: op.Clip, shape: op.Shape) -> Any:
    (x,) = network.operands(clip)
    if (clip.low, clip.high) == (0, np.inf):
        return ops.relu(x)
    return ops.clamp(x, clip.low, clip.high)


def _add(network: _Network, add: op.Add, shape: op.Shape) -> Any:
    return ops.add(*network.operands(add))


def _in_order(numbers: tuple[int, ...]) -> list[int]:
    """Order what belongs to axes of an image as OpenVINO does."""
    if len(numbers) != 3:
        raise NotImplementedError("only images are translated here")
    return [numbers[axis] for axis in _FIRST_CHANNELS]


def _pad(network: _Network, pad: op.Pad, shape: op.Shape) -> Any:
    (x,) = network.operands(pad)
    before, after = ([0, *_in_order(numbers)] for numbers in (pad.before, pad.after))
    return ops.pad(x, _integers(before), _integers(after), "constant", _numbers(pad.value))


def _slice(network: _Network, part: op.Slice, shape: op.Shape) -> Any:
    (x,) = network.operands(part)
    places = (_integers(_in_order(numbers)) for numbers in (part.starts, part.stops, part.strides))
    return ops.slice(x, *places, _integers([1, 2, 3]))


def _reshape(network: _Network, reshape: op.Reshape, shape: op.Shape) -> Any:
    (x,) = network.operands(reshape)
    if len(shape) != 1:
        raise NotImplementedError("only reshaping to one axis is translated here")
    if len(network.shape_of_operand(reshape)) == 3:
        x = ops.transpose(x, _integers([0, 2, 3, 1]))
    return ops.reshape(x, _integers([-1, *shape]), False)


def _transpose(network: _Network, transpose: op.Transpose, shape: op.Shape) -> Any:
    (x,) = network.operands(transpose)
    axes = [_FIRST_CHANNELS.index(axis) for axis in _in_order(transpose.axes)]
    return ops.transpose(x, _integers([0, *(1 + axis for axis in axes)]))


_TRANSLATIONS: dict[type[op.Operation], Callable[[_Network, Any, op.Shape], Any]] = {
    op.Images: _images,
    op.Conv: _conv,
    op.BinaryConv: _binary_conv,
    op.Signs: _signs,
    op.Dense: _dense,
    op.MaxPool: _max_pool,
    op.Sum: _sum,
    op.Affine: _affine,
    op.PReLU: _prelu,
    op.Clip: _clip,
    op.Add: _add,
    op.Pad: _pad,
    op.Slice: _slice,
    op.Reshape: _reshape,
    op.Transpose: _transpose,
}
