"""The safetensors container: named arrays and a table of strings, nothing that could run.

    8 bytes: length of the header, little-endian;  header: JSON;  then the arrays' bytes

The metadata hold the SHA-256 of the whole file, taken with zeros in place of its own 64 digits.
Files without one are read too.

Written here so that equal content gives equal bytes, and so that reading can name what is wrong
with a file instead of trusting it. Nothing is allocated that the file does not hold.

Source: https://github.com/huggingface/safetensors#format
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from siman_jax.errors import UsageError

_DTYPES = {"F16": "<f2", "F32": "<f4", "U32": "<u4"}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_METADATA = "__metadata__"
_DIGEST = "sha256"
_NO_DIGEST = "0" * 64
_MOST_AXES = 8


def encode(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """Bytes of a file, the same for the same content.

    Args:
      tensors: arrays by name, of a dtype in float16, float32, uint32, without empty axes.
      metadata: strings by name, of which none is "sha256".

    >>> arrays, metadata = decode(encode({"a": np.float32([1, 2])}, {"version": "1"}))
    >>> arrays["a"], metadata
    (array([1., 2.], dtype=float32), {'version': '1'})
    """
    strings = {**metadata, _DIGEST: _NO_DIGEST}
    header: dict[str, Any] = {_METADATA: dict(sorted(strings.items()))}
    parts, position = [], 0
    for name, array in sorted(tensors.items()):
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        end = position + little.nbytes
        header[name] = {
            "dtype": _NAMES[little.dtype],
            "shape": list(array.shape),
            "data_offsets": [position, end],
        }
        parts.append(little.tobytes())
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-len(text) % 8)  # arrays start at a multiple of 8
    data = b"".join([len(text).to_bytes(8, "little"), text, *parts])
    # Within a string its quotes would be escaped, so this is found in no other place.
    entry = f'"{_DIGEST}":"{{}}"'
    digest = hashlib.sha256(data).hexdigest()
    return data.replace(entry.format(_NO_DIGEST).encode(), entry.format(digest).encode(), 1)


def decode(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read what `encode` wrote, or any other safetensors file of these dtypes.

    Returns:
      Arrays by name, which share memory with `data`, and the metadata but for the digest.

    Raises:
      UsageError: the bytes are no such file; says what is wrong.
    """
    if len(data) < 8:
        raise UsageError(f"it has {len(data)} bytes; the length of the header alone takes 8.")
    start = 8 + int.from_bytes(data[:8], "little")
    if start > len(data):
        raise UsageError(
            f"its header would end at byte {start}, but it has {len(data)}: truncated or no"
            " safetensors file."
        )
    header = _parse(data[8:start])
    metadata = header.pop(_METADATA, {})
    if not _is_table(metadata) or not all(isinstance(text, str) for text in metadata.values()):
        raise UsageError(f"{_METADATA} is no table of strings.")
    tensors, position = {}, start
    entries = [(_check(name, entry), name) for name, entry in header.items()]
    for (begin, end, dtype, shape), name in sorted(entries, key=lambda entry: entry[0][:2]):
        if start + begin != position:
            raise UsageError(f"{name!r} does not begin where the tensor before it ends.")
        position = start + end
        if position > len(data):
            raise UsageError(
                f"truncated: {name!r} ends at byte {position}, but there are {len(data)}."
            )
        tensors[name] = np.frombuffer(data, dtype, math.prod(shape), start + begin).reshape(shape)
    if position != len(data):
        raise UsageError(f"{len(data) - position} bytes follow the last tensor.")
    _check_digest(data, start, metadata.pop(_DIGEST, None))
    return tensors, metadata


def parse_json(text: str | bytes, what: str) -> Any:
    """Value of a JSON text.

    Raises:
      UsageError: it is none, nests too deeply, or has a key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{what} cannot be read: {error}.") from error


def _check_digest(data: bytes, start: int, digest: str | None) -> None:
    """Compare the file with the digest that it holds, if it does; `start` is the header's end."""
    if digest is None:
        return
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise UsageError("its digest (sha256) is not 64 hexadecimal digits: it is damaged.")
    header = data[:start]
    own = hashlib.sha256(header.replace(digest.encode(), _NO_DIGEST.encode(), 1))
    own.update(memoryview(data)[start:])
    if own.hexdigest() != digest:
        raise UsageError(
            "its digest (sha256) is not that of its contents: they are damaged, or another program"
            " changed them. Take a copy of the file, or export it again."
        )


def _parse(text: bytes) -> dict[str, Any]:
    header = parse_json(text, "its header")
    if not _is_table(header):
        raise UsageError("its header is no JSON object.")
    return header


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key occurs twice")
    return table


def _check(name: str, entry: Any) -> tuple[int, int, str, tuple[int, ...]]:
    """Where a tensor lies, its dtype and shape, if these agree with one another."""
    if not _is_table(entry) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise UsageError(f"{name!r} is not described by dtype, shape and data_offsets.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise UsageError(f"{name!r} has dtype {dtype!r}; known are {', '.join(_DTYPES)}.")
    if not _are_naturals(shape) or len(shape) > _MOST_AXES or 0 in shape:
        raise UsageError(f"{name!r} has shape {shape!r}.")
    if not _are_naturals(offsets) or len(offsets) != 2:
        raise UsageError(f"{name!r} has data_offsets {offsets!r}.")
    begin, end = offsets
    size = math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize
    if end - begin != size:
        raise UsageError(f"{name!r} has {end - begin} bytes; its shape {shape} takes {size}.")
    return begin, end, _DTYPES[dtype], tuple(shape)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _are_naturals(values: Any) -> bool:
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value < 2**63 for value in values
    )
