"""Reads a model file of version 2 and runs it: NumPy alone, written from docs/model_file.md."""

import hashlib
import json
import math

import numpy as np

DTYPES = {"F32": "<f4", "F16": "<f2", "U32": "<u4"}


def read(data):
    """Return the list of operations with their weights, the result's place, and the notes."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    metadata = header.pop("__metadata__")
    assert (metadata["format"], metadata["version"]) == ("siman-jax packed network", "2")
    digest = metadata["sha256"].encode()
    zeroed = data[:start].replace(digest, b"0" * 64, 1) + data[start:]
    assert hashlib.sha256(zeroed).hexdigest().encode() == digest
    arrays = {}
    for name, entry in header.items():
        begin, end = (start + offset for offset in entry["data_offsets"])
        flat = np.frombuffer(data[begin:end], DTYPES[entry["dtype"]])
        arrays[name] = flat.reshape(entry["shape"])
    program = json.loads(metadata["program"])
    for operation in program["operations"]:
        weights = {field: arrays[name] for field, name in operation["weights"].items()}
        operation["weights"] = {
            field: array if array.dtype == np.uint32 else array.astype(np.float32)
            for field, array in weights.items()
        }
    return program["operations"], program["result"], json.loads(metadata["notes"])


def run(data, pixels):
    """Return the logits of images, uint8 `[batch, height, width, channels]`."""
    operations, result, notes = read(data)
    images = (pixels / np.float32(255) - np.float32(notes["mean"])) / np.float32(notes["std"])
    results = []
    for operation in operations:
        operands = [results[place] for place in operation["inputs"]] or [images]
        function = FUNCTIONS[operation["operation"]]
        results.append(function(operation, *operands, **operation["weights"]))
    return results[result]


def signs_of(words, channels):
    """Unpack bits: float32, `[..., channels, out]`."""
    places = np.arange(channels)
    bits = words[..., places // 32, :] >> (places % 32)[:, None].astype(np.uint32) & 1
    return np.where(bits == 1, np.float32(1), np.float32(-1))


def windows(x, size, strides, padding, dilation=(1, 1), fill=0.0):
    """Return what a window sees: `[batch, down, across, *size, channels]`."""
    x = np.pad(x, ((0, 0), *padding, (0, 0)), constant_values=fill)
    spans = [(n - 1) * d + 1 for n, d in zip(size, dilation, strict=True)]
    seen = np.lib.stride_tricks.sliding_window_view(x, spans, (1, 2))
    seen = seen[:, :: strides[0], :: strides[1], :, :: dilation[0], :: dilation[1]]
    return np.moveaxis(seen, 3, -1)


def conv(operation, x, kernel):
    """Convolve, group by group."""
    groups, dilation = operation.get("groups", 1), operation.get("dilation", (1, 1))
    parts = zip(np.split(x, groups, -1), np.split(kernel, groups, -1), strict=True)
    results = [
        np.tensordot(
            windows(part, kernel.shape[:2], operation["strides"], operation["padding"], dilation),
            filters,
            3,
        )
        for part, filters in parts
    ]
    return np.concatenate(results, -1)


def pool(function, fill):
    """Return the function of a pool."""

    def pooled(operation, x):
        sizes = (operation[name] for name in ("window", "strides", "padding"))
        return function(windows(x, *sizes, fill=fill), axis=(3, 4))

    return pooled


def over(function):
    """Return the function of a sum or maximum over axes."""
    return lambda operation, x: function(x, axis=tuple(axis + 1 for axis in operation["axes"]))


def signs(operation, x, threshold=None):
    """Compare with the threshold, or the mean of each image."""
    if threshold is None:
        threshold = x.mean(tuple(range(1, x.ndim)), keepdims=True)
    return np.where(x >= threshold, np.float32(1), np.float32(-1))


def softmax(operation, x):
    """Divide powers by their sum."""
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def pad(operation, x):
    """Add a value around."""
    widths = ((0, 0), *zip(operation["before"], operation["after"], strict=True))
    return np.pad(x, widths, constant_values=np.float32(operation["value"]))


def part(operation, x):
    """Take a part."""
    sizes = zip(operation["starts"], operation["stops"], operation["strides"], strict=True)
    return x[(slice(None), *(slice(*size) for size in sizes))]


FUNCTIONS = {
    "images": lambda o, x: x,
    "constant": lambda o, x, value: np.broadcast_to(value, (len(x), *value.shape)),
    "conv": conv,
    "binary_conv": lambda o, x, words: conv(o, x, signs_of(words, x.shape[-1])),
    "dense": lambda o, x, kernel: x @ kernel,
    "binary_dense": lambda o, x, words: x @ signs_of(words, x.shape[-1]),
    "max_pool": pool(np.max, -math.inf),
    "sum_pool": pool(np.sum, 0.0),
    "sum": over(np.sum),
    "max": over(np.max),
    "affine": lambda o, x, scale=1, shift=0: x * scale + shift,
    "prelu": lambda o, x, slope: np.where(x > 0, x, slope * x),
    "clip": lambda o, x: np.clip(x, float(o["low"]), float(o["high"])),
    "sigmoid": lambda o, x: 0.5 + np.tanh(x / 2) / 2,  # exp(-x) may overflow
    "tanh": lambda o, x: np.tanh(x),
    "softmax": softmax,
    "signs": signs,
    "add": lambda o, a, b: a + b,
    "multiply": lambda o, a, b: a * b,
    "concatenate": lambda o, *x: np.concatenate(x, o["axis"] + 1),
    "pad": pad,
    "slice": part,
    "reshape": lambda o, x: x.reshape(len(x), *o["shape"]),
    "transpose": lambda o, x: x.transpose(0, *(axis + 1 for axis in o["axes"])),
    "broadcast": lambda o, x: np.broadcast_to(x, (len(x), *o["shape"])),
}
