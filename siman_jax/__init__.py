"""1-bit convolutional networks by sign-to-magnitude binarization, in JAX and Flax.

`load` reads a packed model file, `train` trains; the layers and rules to build a network of are
`BinaryConv`, `BinaryDense`, `BatchNorm`, `PReLU`, `WEIGHT_RULES` and `ACTIVATION_RULES`; the five
networks of the paper are `MODELS`, which `build_model` builds. JAX and Flax are imported when one
of these is first used.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ml_collections import ConfigDict
    from numpy.typing import ArrayLike

    from siman_jax.models import MODELS as MODELS
    from siman_jax.models import build_model as build_model
    from siman_jax.models.layers import BinaryConv as BinaryConv
    from siman_jax.models.layers import BinaryDense as BinaryDense
    from siman_jax.models.norm_layer import BatchNorm as BatchNorm
    from siman_jax.models.norm_layer import PReLU as PReLU
    from siman_jax.packed.model import PackedModel
    from siman_jax.rules import ACTIVATION_RULES as ACTIVATION_RULES
    from siman_jax.rules import WEIGHT_RULES as WEIGHT_RULES

# Where each name is that is imported at its first use.
_MODULES = {
    "ACTIVATION_RULES": "siman_jax.rules",
    "WEIGHT_RULES": "siman_jax.rules",
    "MODELS": "siman_jax.models",
    "build_model": "siman_jax.models",
    "BatchNorm": "siman_jax.models.norm_layer",
    "BinaryConv": "siman_jax.models.layers",
    "BinaryDense": "siman_jax.models.layers",
    "PReLU": "siman_jax.models.norm_layer",
}
__all__ = [*_MODULES, "load", "train"]


def __getattr__(name: str) -> Any:
    """Import one of `_MODULES`' names."""
    if name not in _MODULES:
        raise AttributeError(f"module 'siman_jax' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """Names of the module, those that are not imported yet included."""
    return sorted({*globals(), *_MODULES})


def load(path: str | Path, *, exact: bool = False) -> "PackedModel":
    """Read a model file, as `python -m siman_jax.export` writes it.

        model = siman_jax.load("model.safetensors")
        logits = model(images)  # uint8 [batch, height, width, channels]

    JAX has threads, which a forked process would lack: start processes that share the work by
    `spawn` or `forkserver`, and load the file in each of them.

    Args:
      path: of the file.
      exact: compute layer by layer as evaluation on a CPU does, so that no rounding decides a bit
        or a prediction otherwise, where run and file are float32. Otherwise, and faster, the
        native library may add real numbers up in another order, and once in some hundred images a
        rounding decides a bit, seldom the class.

    Raises:
      UsageError: it is no model file, damaged, or lacks what prediction needs.
    """
    from siman_jax.packed.model import load_model  # JAX is imported when it is needed

    return load_model(path, exact=exact)


def train(
    config: "ConfigDict",
    workdir: str | Path,
    *,
    data: "tuple[tuple[ArrayLike, ArrayLike], tuple[ArrayLike, ArrayLike]] | None" = None,
    classes: Sequence[str] | None = None,
    devices: int = 0,
) -> dict[str, dict[str, float]]:
    """Train, or go on from the latest checkpoint, as `python -m siman_jax.main` does.

        config = digits.get_config()  # of configs/
        train, test = (train_images, train_labels), (test_images, test_labels)
        results = siman_jax.train(config, "runs/mine", data=(train, test))
        print(results["best"]["top1"])

    With `data` the run keeps a copy of the config whose data fields (sizes, classes, mean and
    deviation) are taken from the arrays, and goes on only where it is given the data again.

    Args:
      config: as the files in configs/ make it.
      workdir: the run's folder: log, curves, checkpoints.
      data: training and test examples in memory, instead of those that the config names: uint8
        images `[n, size, size, channels]` and labels `[n]`, whole numbers from 0.
      classes: names of the labels in `data`; by default their numbers.
      devices: how many to train on; 0 for all.

    Returns:
      For "last" and "best", of the epochs: epoch, loss, top1 and top5 (percent) on the test split.

    Raises:
      UsageError: the config, the data or the folder cannot be used.
      Preempted: SIGTERM or Ctrl-C came; everything is saved, and the same call goes on from there.
    """
    from siman_jax.data.arrays import dataset_of, describe
    from siman_jax.devices.mesh import make_mesh
    from siman_jax.errors import UsageError
    from siman_jax.paths import local_path
    from siman_jax.runs import train as runs

    folder = local_path(str(workdir), "workdir")
    if data is None:
        if classes is not None:
            raise UsageError("classes name the labels of data, which were not given.")
        return runs.train(config, folder, make_mesh(devices))
    dataset = dataset_of(*data, classes)
    return runs.train(describe(config, dataset), folder, make_mesh(devices), dataset)
