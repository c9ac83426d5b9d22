"""Checksums of the arrays in a tree, equal for every layout on devices and processes.

    checksum = sum over i of word[i] * (first[i % 4096] * second[i // 4096])  modulo 2^64

`word` is the array's bytes in C order, read as little-endian 32-bit words; the last word is padded
with zeros. `first` and `second` are fixed odd pseudo-random 64-bit numbers. Their products are odd,
so a change within one word always changes the sum; other changes go unnoticed once in 2^32. The
sums of parts can be added in any order.
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_ROW = 4096  # words that share a factor of `second`
_WORD_BYTES = 4


@dataclass(frozen=True)
class Checksums:
    """The checksums stored with a checkpoint, and other values that they protect.

    Attributes:
      top1: test accuracy in percent, which decides the best checkpoint; None if not measured.
      shapes: dtype and shape of each leaf, such as "float32[3, 2]", by its path.
      sums: checksum of each leaf, 16 hexadecimal digits, by its path.
    """

    top1: float | None
    shapes: dict[str, str]
    sums: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """Convert to values for JSON, with a digest."""
        fields = {"top1": self.top1, "shapes": self.shapes, "sums": self.sums}
        return {"checksums": fields, "sha256": _digest(fields)}


def checksums_of(tree: Any, top1: float | None) -> Checksums:
    """Compute the checksums of a tree of arrays; all processes that share it must call this.

    Args:
      tree: of `jax.Array`.
      top1: see `Checksums`.
    """
    return Checksums(top1, leaf_shapes(tree), leaf_checksums(tree))


def parse_checksums(value: Any) -> Checksums | None:
    """Parse the result of `as_json`; None for `{}`, which earlier versions wrote.

    Raises:
      ValueError: it is damaged.
    """
    if value == {}:
        return None
    try:
        fields, digest = value["checksums"], value["sha256"]
        if digest == _digest(fields):
            return Checksums(fields["top1"], fields["shapes"], fields["sums"])
    except (KeyError, TypeError):
        pass
    raise ValueError("its checksums are damaged")


def leaf_shapes(tree: Any) -> dict[str, str]:
    """Return dtype and shape of each leaf, by its path, in which objects are like dictionaries."""
    return {
        _name(path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def leaf_checksums(tree: Any) -> dict[str, str]:
    """Compute the checksum of each leaf, 16 hexadecimal digits, by its path as in `leaf_shapes`.

    Each process reads the data on its own devices. For leaves that are divided among processes the
    sums of the parts are added, so all processes that share the tree must call this.

    Args:
      tree: of `jax.Array`.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    sums = np.array([_own_sum(leaf) for _, leaf in leaves], np.uint64)
    divided = np.array([_is_divided(leaf) for _, leaf in leaves], bool)
    if divided.any():
        # JAX has no 64-bit integers unless they are switched on.
        parts = multihost_utils.process_allgather(sums.view(np.uint32)).view(np.uint64)
        sums = np.where(divided, parts.sum(axis=0, dtype=np.uint64), sums)
    return {_name(path): f"{int(own):016x}" for (path, _), own in zip(leaves, sums, strict=True)}


def mismatch(found: Mapping[str, str], stored: Checksums) -> str | None:
    """Describe which leaves do not have the stored checksum; None if all have it."""
    wrong = [name for name, own in found.items() if stored.sums.get(name) != own]
    if not wrong:
        return None
    more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return f"the checksum of {wrong[0]}{more} is wrong"


def array_checksum(array: np.ndarray) -> int:
    """Compute the checksum of a whole array."""
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    rows, rest = divmod(data.size, _ROW * _WORD_BYTES)
    last = np.zeros(-(-rest // _WORD_BYTES), "<u4")  # the last, incomplete row
    last.view(np.uint8)[:rest] = data[data.size - rest :]
    sums = np.empty(rows + 1, np.uint64)
    if rows:
        whole = data[: data.size - rest].view("<u4").reshape(rows, _ROW)
        np.einsum("ij,j->i", whole, _FIRST, out=sums[:rows])  # in 64 bits, without a copy
    sums[rows] = np.dot(last.astype(np.uint64), _FIRST[: last.size])
    return int(np.dot(sums, _second(rows + 1)))


def part_checksum(part: np.ndarray, index: tuple[slice, ...], shape: tuple[int, ...]) -> int:
    """Compute the contribution of a part of an array to the checksum of the whole.

    Args:
      part: values of the part.
      index: place of the part in the array.
      shape: shape of the array.
    """
    size = part.dtype.itemsize
    if not part.size:
        return 0
    starts = [axis.indices(length)[0] for axis, length in zip(index, shape, strict=True)]
    places = np.zeros((1,) * part.ndim, np.int64)
    for axis, (start, count, length) in enumerate(zip(starts, part.shape, shape, strict=True)):
        along = np.arange(start, start + count).reshape(-1, *[1] * (part.ndim - 1 - axis))
        places = places * length + along
    # An element larger than a word is several words.
    pieces = max(1, size // _WORD_BYTES)
    width = size // pieces
    values = np.ascontiguousarray(part).reshape(-1).view(f"<u{width}").astype(np.uint64)
    places = (places.reshape(-1, 1) * pieces + np.arange(pieces)).ravel()
    words, offsets = np.divmod(places * width, _WORD_BYTES)
    shifted = values << (offsets * 8).astype(np.uint64)
    factors = _FIRST[words % _ROW] * _second(words.max() // _ROW + 1)[words // _ROW]
    return int(np.dot(shifted, factors))


def _own_sum(leaf: jax.Array) -> int:
    """Checksum of a leaf; of a divided leaf, the contribution of this process."""
    if not _is_divided(leaf):
        whole = leaf.addressable_data(0) if leaf.is_fully_replicated else leaf
        return array_checksum(np.asarray(whole))
    parts = [
        part_checksum(np.asarray(shard.data), shard.index, leaf.shape)
        for shard in leaf.addressable_shards
        if shard.replica_id == 0
    ]
    return sum(parts) % 2**64


def _is_divided(leaf: jax.Array) -> bool:
    """Whether a leaf is divided among processes, so that none has all of it."""
    return not (leaf.is_fully_replicated or leaf.is_fully_addressable)


def _factors(numbers: np.ndarray) -> np.ndarray:
    """Odd pseudo-random uint64, a function of the given numbers (SplitMix64)."""
    x = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))) | np.uint64(1)


_FIRST = _factors(np.arange(1, _ROW + 1))


@functools.cache
def _second(rows: int) -> np.ndarray:
    return _factors(np.arange(_ROW + 1, _ROW + 1 + rows))


def _digest(fields: Any) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
