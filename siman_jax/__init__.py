"""1-bit convolutional networks by sign-to-magnitude binarization, in JAX and Flax.

`load` reads a packed model, `trained_models` lists those that come with the package, and `train`
trains a network. `BinaryConv`, `BinaryDense`, `BatchNorm`, `PReLU`, `RPReLU` and `Shift` are layers
for networks of your own; `WEIGHT_RULES` and `ACTIVATION_RULES` are the rules that these layers
take. `MODELS` are the five networks of the paper, which `build_model` builds. JAX and Flax are
imported when one of these names is first used.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from ml_collections import ConfigDict
    from numpy.typing import ArrayLike

    from siman_jax.models import MODELS as MODELS
    from siman_jax.models import build_model as build_model
    from siman_jax.models.activations import PReLU as PReLU
    from siman_jax.models.activations import RPReLU as RPReLU
    from siman_jax.models.activations import Shift as Shift
    from siman_jax.models.layers import BinaryConv as BinaryConv
    from siman_jax.models.layers import BinaryDense as BinaryDense
    from siman_jax.models.norm_layer import BatchNorm as BatchNorm
    from siman_jax.packed.model import PackedModel
    from siman_jax.rules import ACTIVATION_RULES as ACTIVATION_RULES
    from siman_jax.rules import WEIGHT_RULES as WEIGHT_RULES
    from siman_jax.trained import trained_models as trained_models

# Names that are imported at their first use, with their modules.
_MODULES = {
    "ACTIVATION_RULES": "siman_jax.rules",
    "WEIGHT_RULES": "siman_jax.rules",
    "MODELS": "siman_jax.models",
    "build_model": "siman_jax.models",
    "BatchNorm": "siman_jax.models.norm_layer",
    "BinaryConv": "siman_jax.models.layers",
    "BinaryDense": "siman_jax.models.layers",
    "PReLU": "siman_jax.models.activations",
    "RPReLU": "siman_jax.models.activations",
    "Shift": "siman_jax.models.activations",
    "trained_models": "siman_jax.trained",
}
__all__ = [*_MODULES, "load", "train"]


def __getattr__(name: str) -> Any:
    """Import one of the names in `_MODULES`."""
    if name not in _MODULES:
        raise AttributeError(f"module 'siman_jax' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """Return the names of the module, including those that are not imported yet."""
    return sorted({*globals(), *_MODULES})


def load(
    source: str | Path | bytes | BinaryIO, *, exact: bool = False, sha256: str | None = None
) -> "PackedModel":
    """Read a trained model of the package, or a file written by `python -m siman_jax.export`.

        model = siman_jax.load("digits/resnet20")  # or "model.safetensors"
        logits = model(images)  # uint8 [batch, height, width, channels]

    The model runs without JAX if the native library was built, and may then be called from several
    threads and after a fork. Otherwise, with `exact`, and for files of version 1, it needs JAX,
    whose threads forked processes lack: start processes by `spawn` or `forkserver`, and load the
    file in each of them.

    Args:
      source: path of a file, its bytes, or the file opened for reading bytes; or a name from
        `trained_models()`, if there is no such file.
      exact: run by JAX, as evaluation on a CPU does. If run and file are float32, every bit and
        prediction is then the same. By default the native library may sum real numbers in
        another order, which is faster. Rounding then changes a bit in about one of several hundred
        images, and rarely the class.
      sha256: digest of the whole file, 64 hexadecimal digits, to be compared with the file's.

    Raises:
      UsageError: the file is missing, damaged, of another kind or version, has another digest, or
        lacks notes that prediction needs. Addresses are refused: nothing is downloaded.
    """
    from siman_jax.packed.model import load_model

    return load_model(source, exact=exact, sha256=sha256)


def train(
    config: "ConfigDict",
    workdir: str | Path,
    *,
    data: "tuple[tuple[ArrayLike, ArrayLike], tuple[ArrayLike, ArrayLike]] | None" = None,
    classes: Sequence[str] | None = None,
    devices: int = 0,
) -> dict[str, dict[str, float]]:
    """Train, or continue from the latest checkpoint, as `python -m siman_jax.main` does.

        from siman_jax.configs import digits

        config = digits.get_config()
        train, test = (train_images, train_labels), (test_images, test_labels)
        results = siman_jax.train(config, "runs/mine", data=(train, test))
        print(results["best"]["top1"])

    With `data`, the run stores a copy of the config with the data fields (sizes, classes, mean and
    deviation) taken from the arrays. Such a run continues only if it is given the same data again.
    SIGTERM and Ctrl-C are handled only if this is called in the main thread.

    Args:
      config: from a file in configs/ or one like these.
      workdir: the run's folder, for log, curves and checkpoints.
      data: training and test examples in memory, instead of those that the config names: uint8
        images `[n, size, size, channels]` and labels `[n]`, whole numbers from 0.
      classes: names of the labels in `data`; by default their numbers.
      devices: how many devices to train on; 0 for all.

    Returns:
      For the "last" and the "best" epoch: epoch, loss, top1 and top5 (percent) on the test split.

    Raises:
      UsageError: the config, the data or the folder cannot be used.
      Preempted: SIGTERM or Ctrl-C was received. Everything is saved, and the same call continues.
    """
    from siman_jax.data.arrays import config_for, dataset_of
    from siman_jax.devices.mesh import make_mesh
    from siman_jax.errors import UsageError
    from siman_jax.paths import local_path
    from siman_jax.runs import train as runs

    folder = local_path(str(workdir), "workdir")
    if data is None:
        if classes is not None:
            raise UsageError("classes were given without data; they name the labels of data.")
        return runs.train(config, folder, make_mesh(devices))
    if not (isinstance(data, tuple | list) and len(data) == 2):
        raise UsageError(
            "data is not a pair; expected ((train_images, train_labels), (test_images,"
            " test_labels))."
        )
    dataset = dataset_of(*data, classes)
    return runs.train(config_for(config, dataset), folder, make_mesh(devices), dataset)
