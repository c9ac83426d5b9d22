"""Damage to bytes and to values of JSON."""

import copy
import json
from typing import Any

import numpy as np

from .case import choose

_DEEP = "a placeholder for what nests deeply"
# In place of any value.
ODD = [
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        3,
        0.5,
        -0.0,
        2**20 + 1,
        2**31 - 1,
        2**31,
        2**32,
        2**53,
        2**63,
        2**64,
        10**40,
        -(10**40),
        10**400,
    ),
    *(1e-320, 1e38, 1e39, 1e308, -1e308, float("nan"), float("inf"), float("-inf")),
    *("", "a", "0", "\0", "\ud800", "\x1b[2J", "é", "../..", "x" * 5000, _DEEP),
    *([], {}, [[]], [None], {"": 0}, {"a": {}}),
]


def damaged_bytes(rng: np.random.Generator, data: bytes) -> bytes:
    """Change `data` in one to three places; now and then nothing."""
    for _ in range(int(rng.integers(1, 4))):
        data = choose(rng, _CHANGES)(rng, data)
    return data


def damaged_json(rng: np.random.Generator, value: Any) -> str:
    """JSON of a value with one to three of its parts replaced, moved, renamed or left out."""
    value = copy.deepcopy(value)
    for _ in range(int(rng.integers(1, 4))):
        holders = list(_holders(value))
        if not holders:
            break
        _change_within(rng, choose(rng, holders))
    text = json.dumps(value, separators=(",", ":"))
    depth = choose(rng, [100, 100_000])
    return text.replace(f'"{_DEEP}"', "[" * depth + "]" * depth)


def flip(data: bytes, place: float, bit: int) -> bytes:
    """Flip one bit of the byte at `place`, a share of the length."""
    if not data:
        return data
    changed = bytearray(data)
    changed[min(int(place * len(data)), len(data) - 1)] ^= 1 << bit
    return bytes(changed)


def _holders(value: Any) -> Any:
    """All tables and lists in a value that are not empty, itself included."""
    if isinstance(value, dict | list) and value:
        yield value
        for part in value.values() if isinstance(value, dict) else value:
            yield from _holders(part)


def _change_within(rng: np.random.Generator, holder: Any) -> None:
    keys = list(holder) if isinstance(holder, dict) else range(len(holder))
    key, other = choose(rng, keys), choose(rng, keys)
    what = rng.random()
    if what < 0.5:
        holder[key] = copy.deepcopy(choose(rng, ODD))
    elif what < 0.65:
        holder[key] = copy.deepcopy(holder[other])
    elif what < 0.75 and type(holder[key]) in (int, float):
        holder[key] += int(rng.integers(-2, 3))
    elif isinstance(holder, list):
        if what < 0.85:
            del holder[key]
        else:
            holder.insert(key, copy.deepcopy(choose(rng, ODD)))
    elif what < 0.85:
        del holder[key]
    else:
        holder[choose(rng, ["", "a", "\ud800", "__class__", "a.b", str(key) + "s"])] = holder.pop(
            key
        )


def _piece(rng: np.random.Generator, data: bytes) -> tuple[int, int]:
    start = int(rng.integers(len(data) + 1))
    return start, min(start + int(2 ** rng.uniform(0, 8)), len(data))


def _flip(rng: np.random.Generator, data: bytes) -> bytes:
    return flip(data, float(rng.random()), int(rng.integers(8)))


def _flip_near_the_start(rng: np.random.Generator, data: bytes) -> bytes:
    return flip(data, float(rng.random()) ** 8, int(rng.integers(8)))


def _set(rng: np.random.Generator, data: bytes) -> bytes:
    start, end = _piece(rng, data)
    end = min(start + choose(rng, [1, 2, 4]), len(data))
    filling = choose(rng, [b"\0", b"\xff", b"\x7f", b"\x80", b" ", b"9", b'"', b"{"])
    return data[:start] + filling * (end - start) + data[end:]


def _cut(rng: np.random.Generator, data: bytes) -> bytes:
    return data[: int(rng.integers(len(data) + 1))]


def _remove(rng: np.random.Generator, data: bytes) -> bytes:
    start, end = _piece(rng, data)
    return data[:start] + data[end:]


def _repeat(rng: np.random.Generator, data: bytes) -> bytes:
    start, end = _piece(rng, data)
    return data[:end] + data[start:end] + data[end:]


def _move(rng: np.random.Generator, data: bytes) -> bytes:
    start, end = _piece(rng, data)
    piece, rest = data[start:end], data[:start] + data[end:]
    place = int(rng.integers(len(rest) + 1))
    return rest[:place] + piece + rest[place:]


def _insert(rng: np.random.Generator, data: bytes) -> bytes:
    place = int(rng.integers(len(data) + 1))
    return data[:place] + rng.bytes(int(rng.integers(1, 20))) + data[place:]


def _append(rng: np.random.Generator, data: bytes) -> bytes:
    return data + choose(rng, [rng.bytes(8), bytes(100), data[:1000]])


_CHANGES = [
    *(_flip, _flip, _flip_near_the_start, _flip_near_the_start, _set, _set, _cut, _remove),
    *(_repeat, _move, _insert, _append),
]
