"""Networks that the native library runs, with NumPy alone: neither JAX nor a compiler is needed.

`siman.h` describes the operations and how they are computed.
"""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from siman_jax.cores import usable_cores
from siman_jax.native.shared import load

_INTEGER, _SIZE = ctypes.c_int64, ctypes.c_size_t
_INTEGERS = ctypes.POINTER(_INTEGER)
_TYPES = {np.dtype(np.float32): 0, np.dtype(np.uint32): 1}
_ERROR_SIZE = 500


class Operation(NamedTuple):
    """An operation of a network.

    Attributes:
      kind: its name in `siman.h`.
      inputs: places of its operands in the list of operations.
      numbers: its integers, in the order of `siman.h`.
      weights: its arrays, float32 or uint32; None for one that is absent.
    """

    kind: str
    inputs: Sequence[int] = ()
    numbers: Sequence[int] = ()
    weights: Sequence[np.ndarray | None] = ()


class _Array(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("type", _INTEGER),
        ("rank", _INTEGER),
        ("sizes", _INTEGERS),
    )


class _Operation(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_char_p),
        ("input_count", _INTEGER),
        ("inputs", _INTEGERS),
        ("number_count", _INTEGER),
        ("numbers", _INTEGERS),
        ("weight_count", _INTEGER),
        ("weights", ctypes.POINTER(_Array)),
    )


class Network:
    """A network, prepared to run.

    It may be called from several threads at once, and after a fork. Other threads may run Python
    meanwhile.

    Attributes:
      image_size: how many numbers an image has.
      result_size: how many numbers the result for an image has.
    """

    def __init__(
        self, operations: Sequence[Operation], result: int, *, variant: str | None = None
    ) -> None:
        """Prepare a network.

        Args:
          operations: each after its operands; the images come first.
          result: place of the operation whose result is the network's.
          variant: instruction set; the fastest one if None.

        Raises:
          ValueError: the operations do not fit each other, or there is no such instruction set.
          RuntimeError: the library was not built.
        """
        self._address = None
        library = load()
        if library is None:
            raise RuntimeError("the native library was not built; expected one for this Python.")
        self._library = _declared(library)
        kept: list[object] = []  # what the structures point to
        given = (_Operation * len(operations))(*(_structure(each, kept) for each in operations))
        error = ctypes.create_string_buffer(_ERROR_SIZE)
        self._address = self._library.siman_create(
            len(operations),
            given,
            result,
            None if variant is None else variant.encode(),
            error,
            _ERROR_SIZE,
        )
        if not self._address:
            raise ValueError(error.value.decode())
        self.image_size: int = self._library.siman_image_size(self._address)
        self.result_size: int = self._library.siman_result_size(self._address)

    def __call__(self, images: np.ndarray, *, threads: int | None = None) -> np.ndarray:
        """Compute the results of a batch of any size.

        Args:
          images: normalized, float32 `[batch, ...]` with `image_size` numbers each.
          threads: how many threads may work; one for each processor if None.

        Returns:
          float32 `[batch, result_size]`.

        Raises:
          ValueError: the images have another dtype or size, or there is less than one thread.
          MemoryError: there is not enough memory.
        """
        if images.dtype != np.float32 or images.ndim < 1 or not self._fits(images):
            raise ValueError(
                f"the images are {images.dtype}{list(images.shape)}; expected float32 with"
                f" {self.image_size} numbers for each image."
            )
        threads = len(usable_cores()) if threads is None else threads
        if threads < 1:
            raise ValueError(f"there are {threads} threads; expected 1 or more.")
        images = np.ascontiguousarray(images)
        results = np.empty((len(images), self.result_size), np.float32)
        error = ctypes.create_string_buffer(_ERROR_SIZE)
        failed = self._library.siman_run(
            self._address,
            len(images),
            images.ctypes.data,
            results.ctypes.data,
            min(threads, 256),
            error,
            _ERROR_SIZE,
        )
        if failed:
            raise MemoryError(error.value.decode())
        return results

    @property
    def number(self) -> int:
        """The number by which compiled programs call this network, as long as it exists."""
        return self._library.siman_network_number(self._address)

    def __del__(self) -> None:
        if self._address:
            self._library.siman_destroy(self._address)

    def _fits(self, images: np.ndarray) -> bool:
        return images.size == len(images) * self.image_size


def _integers(numbers: Sequence[int], kept: list[object]) -> "ctypes.Array[ctypes.c_int64]":
    array = (_INTEGER * len(numbers))(*numbers)
    kept.append(array)
    return array


def _structure(operation: Operation, kept: list[object]) -> _Operation:
    weights = (_Array * len(operation.weights))(*(_array(x, kept) for x in operation.weights))
    kept.append(weights)
    return _Operation(
        operation.kind.encode(),
        len(operation.inputs),
        _integers(operation.inputs, kept),
        len(operation.numbers),
        _integers(operation.numbers, kept),
        len(weights),
        weights,
    )


def _array(weight: np.ndarray | None, kept: list[object]) -> _Array:
    if weight is None:
        return _Array()
    if weight.dtype not in _TYPES:
        raise ValueError(f"a weight is {weight.dtype}; expected float32 or uint32.")
    # Adds no axis to a single number, as ascontiguousarray would.
    weight = np.require(weight, requirements="C")
    kept.append(weight)
    return _Array(
        weight.ctypes.data, _TYPES[weight.dtype], weight.ndim, _integers(weight.shape, kept)
    )


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """Tell ctypes the types of the functions."""
    address, text = ctypes.c_void_p, ctypes.c_char_p
    library.siman_create.argtypes = (
        _INTEGER,
        ctypes.POINTER(_Operation),
        _INTEGER,
        text,
        text,
        _SIZE,
    )
    library.siman_create.restype = address
    library.siman_run.argtypes = (address, _INTEGER, address, address, _INTEGER, text, _SIZE)
    library.siman_run.restype = ctypes.c_int
    library.siman_destroy.argtypes = (address,)
    library.siman_destroy.restype = None
    for function in ("siman_image_size", "siman_result_size", "siman_network_number"):
        getattr(library, function).argtypes = (address,)
        getattr(library, function).restype = _INTEGER
    return library
