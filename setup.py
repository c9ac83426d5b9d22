"""Build of the native kernel, which is optional; the rest of the package is in pyproject.toml."""

from glob import glob

import jax
from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "siman_jax.packed._native",
            ["siman_jax/packed/cpp/native.cc"],
            depends=glob("siman_jax/packed/cpp/*.[hi]*"),
            include_dirs=[jax.ffi.include_dir()],
            extra_compile_args=["-std=c++17", "-O3"],
            optional=True,
        )
    ]
)
