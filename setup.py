"""Builds the native library, which is optional; the rest of the package is in pyproject.toml."""

import os
from collections.abc import Iterable
from glob import glob

import jax
from setuptools import Extension, setup
from setuptools.command.sdist import sdist

CONFIGS = os.path.join("siman_jax", "configs")


class SourceArchive(sdist):
    """An archive in which `siman_jax/configs` is a link to `configs`, as in the repository."""

    def make_release_tree(self, base_dir: str, files: Iterable[str]) -> None:
        """Lay out the archive's files; setuptools would copy what is behind the link."""
        super().make_release_tree(
            base_dir, [file for file in files if not file.startswith(CONFIGS + os.sep)]
        )
        os.symlink(os.path.join(os.pardir, "configs"), os.path.join(base_dir, CONFIGS))


setup(
    cmdclass={"sdist": SourceArchive},
    ext_modules=[
        Extension(
            "siman_jax.native._native",
            sorted(glob("siman_jax/native/*.cc")),
            depends=sorted(glob("siman_jax/native/*.[hi]*")),
            include_dirs=[jax.ffi.include_dir()],
            extra_compile_args=["-std=c++17", "-O3"],
            optional=True,
        )
    ],
)
