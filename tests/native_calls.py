"""A valid call of each function of the native library."""

import jax
import jax.numpy as jnp
import numpy as np

from siman_jax.native import library

F32, I32, I16, U32, BOOL = (jnp.dtype(name) for name in ("f4", "i4", "i2", "u4", "bool"))
NOTHING = ((0, 0, 0, 0), F32)
CONV = {"stride": 1, "top": 1, "left": 1}
POOL = {"down": 3, "across": 3, "row_stride": 2, "column_stride": 2, "top": 1, "left": 1}
X, KERNEL, Y = ((2, 6, 6, 16), F32), ((3, 3, 16, 16), F32), ((2, 6, 6, 16), F32)
SUMS, NO_SUMS = ((2, 6, 6, 16), I16), ((0, 0, 0, 0), I16)
SAMPLES, ROWS = ((2, 36, 16), F32), ((4, 16), F32)
FORWARD = {**CONV, "centred": True, "before_activation": 1}
BACK = {**FORWARD, "estimator": 1, "activation": 1}
NO_SAMPLES, NO_ROWS = ((0, 0, 0), F32), ((0, 0), F32)
ALONE, AFTER = [NO_SAMPLES, NO_SAMPLES, NO_ROWS], [((2, 36, 16), I16), SAMPLES, ROWS]
# A valid call of each function: operands, results, attributes.
CALLS = {
    library.CONV_FORWARD: (
        [X, KERNEL, ((16,), F32), *ALONE],
        [((2, 2), F32), SUMS, ((2, 16), F32), NOTHING, NOTHING],
        FORWARD,
    ),
    "later " + library.CONV_FORWARD: (
        [NOTHING, KERNEL, ((16,), F32), *AFTER],
        [((2, 2), F32), SUMS, ((2, 16), F32), NOTHING, X],
        FORWARD,
    ),
    "scaled " + library.CONV_FORWARD: (
        [X, KERNEL, ((16,), F32), *ALONE],
        [((2, 2), F32), NO_SUMS, ((0, 0), F32), Y, NOTHING],
        FORWARD,
    ),
    library.CONV_BACKWARD: (
        [X, KERNEL, ((16,), F32), ((2, 2), F32), Y, SUMS, SAMPLES, ((7, 16), F32), *ALONE],
        [KERNEL, X, SAMPLES, NO_ROWS],
        {**BACK, "shortcut_is_input": False, "times_scale": True},
    ),
    "later " + library.CONV_BACKWARD: (
        [X, KERNEL, ((16,), F32), ((2, 2), F32), Y, SUMS, SAMPLES, ((7, 16), F32), *AFTER],
        [KERNEL, X, SAMPLES, ((3, 16), F32)],
        {**BACK, "shortcut_is_input": False, "times_scale": True},
    ),
    "scaled " + library.CONV_BACKWARD: (
        [X, KERNEL, ((16,), F32), ((2, 2), F32), Y, NO_SUMS, NOTHING, ((0, 0), F32), *ALONE],
        [KERNEL, X, NOTHING, NO_ROWS],
        {**BACK, "shortcut_is_input": False, "times_scale": False},
    ),
    library.REAL_FORWARD: ([((2, 6, 6, 3), F32), ((3, 3, 3, 16), F32)], [Y], CONV),
    library.REAL_KERNEL_GRADIENT: ([((2, 6, 6, 3), F32), Y], [((3, 3, 3, 16), F32)], CONV),
    library.EXCEEDS_KTH: ([((9, 5), F32), ((5,), I32)], [((9, 5), BOOL)], {}),
    library.KTH_OF_ALL: ([((9,), F32), ((2,), I32)], [((2,), F32)], {}),
    library.PROJECT: ([((9, 5), F32), ((4,), I32), ((2,), F32)], [((9, 5), F32)], {}),
    library.MAGNITUDE_CODE: (
        [((9, 5), F32)],
        [((9, 5), F32), ((2, 5), F32)],
        {"rank": 4, "epsilon": np.float32(1e-5)},
    ),
    library.MAGNITUDE_CODE_GRADIENT: (
        [((9, 5), F32), ((2, 5), F32), ((9, 5), F32)],
        [((9, 5), F32)],
        {},
    ),
    library.NORM_STATISTICS: ([SAMPLES], [((2, 16), F32)], {}),
    library.NORM_FORWARD: ([SAMPLES, SAMPLES, ROWS], [SAMPLES], {"activation": 1}),
    library.NORM_SUMS: ([SAMPLES, SAMPLES, SAMPLES, ROWS], [((3, 16), F32)], {"activation": 1}),
    library.NORM_BACKWARD: (
        [SAMPLES, SAMPLES, SAMPLES, ((7, 16), F32)],
        [SAMPLES, SAMPLES],
        {"activation": 1},
    ),
    library.MAX_POOL: ([X], [((2, 3, 3, 16), F32), ((2, 3, 3, 16), jnp.dtype("u1"))], POOL),
    library.MAX_POOL_GRADIENT: (
        [((2, 3, 3, 16), F32), ((2, 3, 3, 16), jnp.dtype("u1"))],
        [X],
        POOL,
    ),
    library.BINARY_CONV: (
        [((2, 6, 6, 40), BOOL), ((3, 3, 2, 16), U32), ((4, 4, 16), I32)],
        [((2, 6, 6, 16), I32), ((2, 8, 8, 2), U32)],
        CONV,
    ),
}


def call(name, operands, results, attributes):
    arrays = [jnp.ones(shape, dtype) for shape, dtype in operands]
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in results]
    return jax.block_until_ready(
        library.call(name.split()[-1], tuple(shapes), *arrays, **attributes)
    )
