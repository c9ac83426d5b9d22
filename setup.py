"""Build of the native library, which is optional; the rest of the package is in pyproject.toml."""

from glob import glob

import jax
from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "siman_jax.native._native",
            sorted(glob("siman_jax/native/*.cc")),
            depends=sorted(glob("siman_jax/native/*.[hi]*")),
            include_dirs=[jax.ffi.include_dir()],
            extra_compile_args=["-std=c++17", "-O3"],
            optional=True,
        )
    ]
)
