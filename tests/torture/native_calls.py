"""Calls of the native library with odd shapes, dtypes, numbers and contents.

`NativeCalls` calls the library as it is built: a crash is seen. `SanitizedCalls` builds it with
AddressSanitizer and UBSan, where the compiler has them, which see what happens not to crash.
"""

import json
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from siman_jax.native import library
from tests.native_calls import CALLS

from .case import Finding, Unavailable, choose

_SIZES = [0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 128]
_NUMBERS = [
    *(
        -(2**63),
        -(2**31),
        -2,
        -1,
        0,
        1,
        2,
        3,
        4,
        5,
        7,
        8,
        16,
        17,
        255,
        2**20,
        2**31,
        2**32,
        2**63 - 1,
    )
]
_DTYPES = ["f4", "f4", "f4", "i4", "i2", "u4", "u1", "bool", "f2"]
_FILLS = ["ones", "normal", "odd", "bits"]
_MOST = 2**20  # elements of an array


class NativeCalls:
    seconds = 300
    lifetime = 1500

    def __init__(self, scratch: Path) -> None:
        if not library.variants():
            raise Unavailable("the native library is not built")

    def make(self, rng: np.random.Generator) -> bytes:
        name = choose(rng, list(CALLS))
        operands, results, attributes = CALLS[name]
        arrays = [[list(shape), dtype.name] for shape, dtype in (*operands, *results)]
        numbers = {key: np.asarray(value).tolist() for key, value in attributes.items()}
        for _ in range(int(rng.integers(0, 4))):
            _change(rng, arrays, numbers)
        plan = {"name": name, "arrays": arrays, "numbers": numbers, "fill": choose(rng, _FILLS)}
        return json.dumps({**plan, "operands": len(operands)}).encode()

    def check(self, case: bytes) -> Mapping[str, int]:
        plan = json.loads(case)
        arrays = [(tuple(shape), jnp.dtype(dtype)) for shape, dtype in plan["arrays"]]
        if any(np.prod(shape, dtype=float) > _MOST for shape, _ in arrays):
            return {"too large to try": 1}
        count = plan["operands"]
        given = [_filled(plan["fill"], shape, dtype) for shape, dtype in arrays[:count]]
        if plan["name"] == library.BINARY_CONV:
            # Sums of bits, which no caller can give: of any size they would overflow.
            given = [x % 2**20 if x.dtype == jnp.int32 else x for x in given]
        shapes = tuple(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in arrays[count:])
        kinds = CALLS[plan["name"]][2]
        attributes = {key: _attribute(value, kinds[key]) for key, value in plan["numbers"].items()}
        try:
            target = plan["name"].split()[-1]
            jax.block_until_ready(library.call(target, shapes, *given, **attributes))
        except (jax.errors.JaxRuntimeError, ValueError) as error:
            text = str(error)
            if "INVALID_ARGUMENT" not in text and "expected" not in text:
                raise
            return {"refused": 1}
        return {"computed": 1}


def _change(rng: np.random.Generator, arrays: list[Any], numbers: dict[str, Any]) -> None:
    what = rng.random()
    array = choose(rng, arrays)
    if what < 0.5 and array[0]:
        array[0][int(rng.integers(len(array[0])))] = choose(rng, _SIZES)
    elif what < 0.6:
        axis = int(rng.integers(len(array[0]) + 1))
        if rng.random() < 0.5 and array[0]:
            array[0].pop(axis % len(array[0]))
        else:
            array[0].insert(axis, choose(rng, _SIZES))
    elif what < 0.65:
        array[1] = choose(rng, _DTYPES)
    elif what < 0.75:
        # The same in all arrays, which may well fit then.
        before, after = choose(rng, [2, 3, 6, 16]), choose(rng, _SIZES)
        for shape, _ in arrays:
            shape[:] = [after if size == before else size for size in shape]
    elif numbers:
        key = choose(rng, list(numbers))
        value = numbers[key]
        if isinstance(value, list):
            if rng.random() < 0.7 and value:
                value[int(rng.integers(len(value)))] = choose(rng, _NUMBERS)
            else:
                value.append(choose(rng, _NUMBERS))
        elif isinstance(value, bool):
            numbers[key] = not value
        else:
            numbers[key] = choose(rng, _NUMBERS)


def _attribute(value: Any, like: Any) -> Any:
    if isinstance(like, np.ndarray):
        return np.array(value, np.int64)
    if isinstance(like, np.float32):
        return np.float32(value)
    return value


def _filled(fill: str, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    rng = np.random.default_rng([len(shape), *shape])
    if fill == "ones":
        values = np.ones(shape)
    elif fill == "normal":
        values = 3 * rng.standard_normal(shape)
    elif fill == "bits" or dtype.kind in "iu":
        size = int(np.prod(shape)) * dtype.itemsize
        values = np.frombuffer(rng.bytes(size), np.uint8)
        if dtype.kind == "b":
            values = values & 1
        values = values.view(dtype).reshape(shape)
    else:
        odd = np.array([np.nan, np.inf, -np.inf, 0, -0.0, 1e38, -1, 1e-40, 0.5])
        values = odd[rng.integers(len(odd), size=shape)]
    with np.errstate(all="ignore"):  # what is odd does not fit every dtype
        return jnp.asarray(np.asarray(values).astype(dtype))


class SanitizedCalls:
    seconds = 600
    lifetime = 5000

    def __init__(self, scratch: Path) -> None:
        from .pool import Worker

        tree, runtime = _build(scratch)
        environment = {
            "LD_PRELOAD": runtime,
            "PYTHONPATH": str(tree),
            # CPython keeps memory until its end. What cannot be allocated is refused by XLA.
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:handle_segv=1",
            "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        }
        self._start = lambda: Worker("native_calls", 0, environment, tree)
        self._worker = self._start().__enter__()
        if self._worker.unavailable:
            raise Unavailable(self._worker.unavailable)
        self._case = scratch / "case"

    make = NativeCalls.make

    def check(self, case: bytes) -> Mapping[str, int]:
        self._case.write_bytes(case)
        answer = self._worker.ask(str(self._case))
        if answer["word"] == "finding":
            self._worker.__exit__()
            self._worker = self._start().__enter__()
            raise Finding(answer["text"])
        return answer["counts"]


def _build(scratch: Path) -> tuple[Path, str]:
    """A copy of the package, by links, with a library built under sanitizers; and their runtime.

    Raises:
      Unavailable: there is no compiler that has them.
    """
    from .pool import REPOSITORY

    compiler = os.environ.get("CXX", "g++")
    if not shutil.which(compiler):
        raise Unavailable(f"there is no compiler {compiler}")
    tree = scratch / "tree"
    own = tree / "siman_jax" / "native"
    own.mkdir(parents=True)
    _link(REPOSITORY, tree, {"siman_jax", ".git"})
    _link(REPOSITORY / "siman_jax", tree / "siman_jax", {"native"})
    sources = REPOSITORY / "siman_jax" / "native"
    for path in sources.glob("*.py"):
        (own / path.name).symlink_to(path)
    flags = [
        *("-std=c++17", "-O0", "-g", "-fPIC", "-fno-omit-frame-pointer", "-w"),
        *(
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=all",
            f"-I{jax.ffi.include_dir()}",
        ),
    ]
    objects = []
    for path in sorted(sources.glob("*.cc")):
        objects.append(str(scratch / f"{path.stem}.o"))
        _compile([compiler, *flags, "-c", str(path), "-o", objects[-1]])
    name = f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    _compile([compiler, *flags, "-shared", *objects, "-o", str(own / name)])
    runtimes = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    return tree, " ".join(runtimes)


def _compile(line: list[str]) -> None:
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"no compiler with sanitizers: {done.stderr[:300]}")


def _link(source: Path, target: Path, but: set[str]) -> None:
    for path in source.iterdir():
        if path.name not in but:
            (target / path.name).symlink_to(path)
