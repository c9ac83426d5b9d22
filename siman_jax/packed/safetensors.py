"""The safetensors container: named arrays and a table of strings, and no code.

    8 bytes: length of the header, little-endian;  header: JSON;  then the arrays' bytes

The metadata hold the SHA-256 of the whole file, computed with zeros in place of its own 64 digits.
Files without a digest can be read too.

This is an implementation of its own so that equal content gives equal bytes, and so that errors
say what is wrong with a file. The header is not trusted: memory is bounded by the file's size.

Source: https://github.com/huggingface/safetensors#format
"""

import hashlib
import json
import math
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from siman_jax.errors import UsageError

_DTYPES = {"F16": "<f2", "F32": "<f4", "U32": "<u4"}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_METADATA = "__metadata__"
_DIGEST = "sha256"
_NO_DIGEST = "0" * 64
_MOST_AXES = 8
_WORTH_A_THREAD = 2**20  # bytes, which take about a millisecond


def encode(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """Encode arrays and metadata; equal content gives equal bytes.

    Args:
      tensors: arrays by name, float16, float32 or uint32, without empty axes.
      metadata: strings by name; the name "sha256" is reserved.

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
    # Inside of a string the quotes would be escaped, so this occurs only once.
    entry = f'"{_DIGEST}":"{{}}"'
    digest = hashlib.sha256(data).hexdigest()
    return data.replace(entry.format(_NO_DIGEST).encode(), entry.format(digest).encode(), 1)


def decode(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Decode the output of `encode`, or any other safetensors file of these dtypes.

    Returns:
      Arrays by name, which share memory with `data`, and the metadata without the digest.

    Raises:
      UsageError: the bytes are not such a file, or are damaged.
    """
    with decoding(data) as content:
        return content


@contextmanager
def decoding(data: bytes) -> Iterator[tuple[dict[str, np.ndarray], dict[str, str]]]:
    """As `decode`, but a large file's digest is computed during the block.

    Then the digest is compared when the block ends. If it does not match, the error says so,
    whatever error the damage caused in the block.
    """
    tensors, metadata, start = _decode(data)
    digest = metadata.pop(_DIGEST, None)
    if digest is None:
        yield tensors, metadata
        return
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise UsageError("it is damaged: its digest (sha256) is not 64 hexadecimal digits.")
    if len(data) < _WORTH_A_THREAD:
        _compare(_own_digest(data, start, digest), digest)
        yield tensors, metadata
        return
    own: list[str] = []
    work = threading.Thread(target=lambda: own.append(_own_digest(data, start, digest)))
    work.start()
    try:
        yield tensors, metadata
    finally:
        work.join()
        _compare(own[0], digest)


def _compare(own: str, digest: str) -> None:
    if own != digest:
        raise UsageError(
            "its digest (sha256) does not match its contents: they are damaged, or another"
            " program changed them. Use a copy of the file, or export it again."
        )


def _decode(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, str], int]:
    """Arrays, all metadata, and where the header ends."""
    if len(data) < 8:
        raise UsageError(f"it has only {len(data)} bytes; expected a header.")
    start = 8 + int.from_bytes(data[:8], "little")
    if start > len(data):
        raise UsageError(
            f"its header would end at byte {start}, but it has {len(data)}: it is truncated, or"
            " not a safetensors file."
        )
    header = _parse(data[8:start])
    metadata = header.pop(_METADATA, {})
    if not _is_table(metadata) or not all(isinstance(text, str) for text in metadata.values()):
        raise UsageError(f"{_METADATA} is not a table of strings.")
    tensors, position = {}, start
    entries = [(_check(name, entry), name) for name, entry in header.items()]
    for (begin, end, dtype, shape), name in sorted(entries, key=lambda entry: entry[0][:2]):
        if start + begin != position:
            raise UsageError(f"{name!r} does not begin where the tensor before it ends.")
        position = start + end
        if position > len(data):
            raise UsageError(
                f"it is truncated: {name!r} ends at byte {position}, but it has {len(data)}."
            )
        tensors[name] = np.frombuffer(data, dtype, math.prod(shape), start + begin).reshape(shape)
    if position != len(data):
        raise UsageError(f"{len(data) - position} bytes follow the last tensor.")
    return tensors, metadata, start


def parse_json(text: str | bytes, what: str) -> Any:
    """Parse a JSON text.

    Raises:
      UsageError: it is not JSON, is nested too deeply, or has a key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{what} cannot be read: {error}.") from error


def _own_digest(data: bytes, start: int, digest: str) -> str:
    """The digest that belongs to `data`, whose header ends at `start` and holds `digest`."""
    own = hashlib.sha256(data[:start].replace(digest.encode(), _NO_DIGEST.encode(), 1))
    own.update(memoryview(data)[start:])
    return own.hexdigest()


def _parse(text: bytes) -> dict[str, Any]:
    header = parse_json(text, "its header")
    if not _is_table(header):
        raise UsageError("its header is not a JSON object.")
    return header


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key occurs twice")
    return table


def _check(name: str, entry: Any) -> tuple[int, int, str, tuple[int, ...]]:
    """Return a tensor's first byte, end, dtype and shape, after checking that they agree."""
    if not _is_table(entry) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise UsageError(f"{name!r} is not described by dtype, shape and data_offsets.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise UsageError(f"{name!r} has dtype {dtype!r}; expected one of {', '.join(_DTYPES)}.")
    if not _are_naturals(shape) or len(shape) > _MOST_AXES or 0 in shape:
        raise UsageError(f"{name!r} has an invalid shape, {shape!r}.")
    if not _are_naturals(offsets) or len(offsets) != 2:
        raise UsageError(f"{name!r} has invalid data_offsets, {offsets!r}.")
    begin, end = offsets
    size = math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize
    if end - begin != size:
        raise UsageError(f"{name!r} has {end - begin} bytes; expected {size} for shape {shape}.")
    return begin, end, _DTYPES[dtype], tuple(shape)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _are_naturals(values: Any) -> bool:
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value < 2**63 for value in values
    )
