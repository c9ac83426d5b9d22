"""Command line: pack a run's network into a model file.

    python -m siman_jax.export runs/digits --out=digits.safetensors

The bits are computed from the checkpoint's weights by the network's weight rule. Equal checkpoints
give equal files. The data are not needed. Class names are stored if they are known. If the test
images are in memory, the file is compared with the network on some of them, otherwise on noise.
Exit status: 0 if all went well, 2 for bad arguments or input.
"""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax import Array
from ml_collections import ConfigDict

from siman_jax.command import run
from siman_jax.data import class_names, load_dataset
from siman_jax.data.dataset import Split
from siman_jax.data.defaults import evaluated_images
from siman_jax.devices.mesh import make_mesh
from siman_jax.errors import UsageError
from siman_jax.models.normalization import normalize
from siman_jax.output import check_output, write_whole
from siman_jax.packed.inference import export_program
from siman_jax.packed.notes import Notes
from siman_jax.packed.program_file import PackedProgram, write_program
from siman_jax.paths import local_path
from siman_jax.program.prove import COMPARED, proven_program
from siman_jax.runs.log import read_rows
from siman_jax.runs.model_notes import notes_from_config
from siman_jax.runs.stored_run import load_run, with_stored_classes
from siman_jax.runs.trained_on import check_classes, read_trained_on
from siman_jax.runs.workdir import config_digest, read_config
from siman_jax.terminal import shown
from siman_jax.training.metrics import METRICS
from siman_jax.training.task import image_shape, model_from_config

# Other commands have flags of some of these names, and tests import several commands.
_OUT = flags.DEFINE_string("out", None, "Model file to write.", allow_override=True)
_CHECKPOINT = flags.DEFINE_enum(
    "checkpoint", "last", ["last", "best"], "Which of the run's checkpoints to pack."
)
_UNAVERAGED = flags.DEFINE_bool(
    "unaveraged", False, "Pack the weights as trained, of a run that averages them too."
)
_FLOAT16 = flags.DEFINE_bool(
    "float16", False, "Store everything that is not binary in float16: half the size, but rounded."
)
_STABLEHLO = flags.DEFINE_string(
    "stablehlo", None, "File to write the network to as a program for jax.export.deserialize."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace existing files.", allow_override=True)


def main(argv: list[str]) -> None:
    """Run the command."""
    if len(argv) != 2:
        raise UsageError("name the folder of one run, such as runs/digits; flags are --NAME=VALUE.")
    if not _OUT.value:
        raise UsageError("--out is missing; name the file to write, such as model.safetensors.")
    workdir, out = local_path(argv[1], "workdir"), local_path(_OUT.value, "--out")
    program = local_path(_STABLEHLO.value, "--stablehlo") if _STABLEHLO.value else None
    check_output(out, "out", _OVERWRITE.value)
    if program:
        check_output(program, "stablehlo", _OVERWRITE.value)
        if importlib.util.find_spec("flatbuffers") is None:
            raise UsageError(
                "--stablehlo needs the package flatbuffers. Run pip install flatbuffers, or leave"
                " out --stablehlo."
            )
        if program.absolute() == out.absolute():
            raise UsageError("--out and --stablehlo name the same file; name two different files.")
    config = read_config(workdir)
    # The same file on every machine; and a TPU that is training is not disturbed.
    jax.config.update("jax_platforms", "cpu")
    network, notes = pack_run(
        config, workdir, best=_CHECKPOINT.value == "best", unaveraged=_UNAVERAGED.value
    )
    stablehlo = export_program(network, notes) if program else b""
    float_dtype = np.float16 if _FLOAT16.value else np.float32
    write_program(out, network, float_dtype)
    if program:
        write_whole(program, stablehlo)
    print(shown(describe(out, network, notes), keep="\n"))
    if notes.accuracy and (config.model.dtype != "float32" or _FLOAT16.value):
        reals = "float16" if _FLOAT16.value else "float32"
        print(
            f"The run was evaluated in {config.model.dtype}; the file holds {reals} and computes in"
            " float32, so a few predictions may differ from the run's."
        )
    if program:
        size = program.stat().st_size
        print(shown(f"{program}: {size:,} bytes, StableHLO for cpu, cuda and tpu"))


def pack_run(
    config: ConfigDict, workdir: Path, *, best: bool, unaveraged: bool = False
) -> tuple[PackedProgram, Notes]:
    """Pack a checkpoint of a run, or the average that it holds, and print what was proven.

    Args:
      config: of the run.
      workdir: the run's folder.
      best: use the checkpoint with the best test accuracy instead of the last.
      unaveraged: pack the weights as trained instead of their average.

    Raises:
      UsageError: `workdir` holds no readable checkpoint, or that of another network; or the
        network cannot be packed; or it is asked for `unaveraged`, and the run has no average.
    """
    if unaveraged and not config.average_decay:
        raise UsageError(
            f"the run in {workdir} does not average its weights; leave out --unaveraged."
        )
    state = load_run(config, workdir, make_mesh(1), best=best).progress.state
    variables = state.variables() if unaveraged else state.evaluated()
    in_float32 = with_stored_classes(config, workdir).copy_and_resolve_references()
    in_float32.model.dtype = "float32"
    model = model_from_config(in_float32)
    images = _test_images(config)
    program, proof = proven_program(model, variables, image_shape(config), images)
    kind = "noise" if images is None else evaluated_images(config.data)
    print(shown(f"{config.model.name}, on images of {kind}: {proof}"))
    network = PackedProgram(program)
    notes = notes_from_config(
        config.data,
        class_names=_class_names(config, workdir, network.num_classes),
        accuracy=None  # the test split was not evaluated
        if config.data.validation_examples
        else _accuracy(workdir, int(state.step), "unaveraged_" if unaveraged else ""),
        config_sha256=config_digest(config),
    )
    return replace(network, notes=notes.as_json()), notes


def describe(path: Path, network: PackedProgram, notes: Notes) -> str:
    """Describe the file: its size, the share of binary weights, and the network's accuracy."""
    words = sum(array.nbytes for _, name, array in network.program.tensors() if name == "words")
    size = path.stat().st_size
    lines = [
        f"{path}: {size:,} bytes; {100 * words / size:.1f} % are 1-bit weights, the rest real"
        " numbers and the header"
    ]
    if notes.accuracy:
        top1, epoch = notes.accuracy["top1"], notes.accuracy["epoch"]
        lines.append(f"top-1 on the test split: {top1:.2f} % after epoch {epoch:g}")
    else:
        lines.append("top-1 on the test split: unknown")
    return "\n".join(lines)


def _test_images(config: ConfigDict) -> Array | None:
    """Return the first test images, normalized; None if they are streamed or not at hand."""
    if not config.data.resident:
        return None
    try:
        test = load_dataset(config.data).test
    except UsageError:
        return None
    if not isinstance(test, Split):
        return None
    return normalize(jnp.asarray(test.images[:COMPARED]), config.data.mean, config.data.std)


def _class_names(config: ConfigDict, workdir: Path, count: int) -> tuple[str, ...] | None:
    """Find the names of the run's classes; if that fails, print why and return None.

    Raises:
      UsageError: the data now have other classes than the run was trained on.
    """
    trained_on = read_trained_on(workdir)
    try:
        names = class_names(config.data)
    except UsageError as error:
        if trained_on is None:
            print(shown(f"class names are left out: {error}"))
            return None
        names = trained_on.classes
    check_classes(names, workdir)
    if len(names) != count:
        print(f"class names are left out: the data have {len(names)} classes, the network {count}")
        return None
    return names


def _accuracy(workdir: Path, step: int, weights: str) -> dict[str, Any] | None:
    """Return the logged test metrics of the checkpoint of `step`.

    Args:
      workdir: the run's folder.
      step: step of the checkpoint.
      weights: what the names of the metrics begin with: "" or "unaveraged_".
    """
    names = {name: f"{weights}test_{name}" for name in METRICS}
    rows = [row for row in read_rows(workdir) if row["step"] == step]
    if not rows or not all(isinstance(rows[-1].get(n), int | float) for n in names.values()):
        return None
    return {"epoch": rows[-1]["epoch"], **{key: rows[-1][name] for key, name in names.items()}}


if __name__ == "__main__":
    run(main)
