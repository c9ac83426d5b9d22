r"""Command line: convert a checkpoint of the authors' PyTorch program.

    python -m siman_jax.convert model_best.pth.tar --model=cifar.resnet20_1w1a \
        --out=model.safetensors
    python -m siman_jax.convert model_best.pth.tar --model=cifar.resnet20_1w1a \
        --out=model.safetensors --workdir=runs/tuned

The model file gets the bits that the checkpoint stores in `B`, which its evaluation used. With
--workdir a run is created too; `python -m siman_jax.main` with the same --workdir and config then
continues training with a new optimizer. --table prints the place of each array. Reading the
checkpoint needs PyTorch, the extra `torch`. Exit status: 0 if all went well, 2 for bad arguments or
input.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags
from rich.table import Table

from siman_jax.command import lock_config, run
from siman_jax.configs import cifar10, imagenet
from siman_jax.data import num_classes
from siman_jax.devices.mesh import make_mesh
from siman_jax.errors import UsageError, choose
from siman_jax.models import MODELS, build_model
from siman_jax.models.images import Images, default_images
from siman_jax.models.leaves import BITS
from siman_jax.output import check_output
from siman_jax.packed.notes import Notes, parse_notes
from siman_jax.packed.program_file import PackedProgram, write_program
from siman_jax.paths import local_path
from siman_jax.program.prove import proven_program
from siman_jax.pytorch.bits import stored_bits
from siman_jax.pytorch.checkpoint import State, read_state
from siman_jax.pytorch.names import flax_path, variables_from_torch
from siman_jax.runs.model_notes import notes_from_config
from siman_jax.runs.stored_run import create_run
from siman_jax.runs.workdir import check_workdir, check_writable
from siman_jax.terminal import say, shown, wide_console
from siman_jax.training.task import activation_rule

# The rules of the authors' program.
_RULES = {"weight_rule": "half_half", "activation_rule": "siman"}
_CONFIGS = {"cifar": cifar10, "imagenet": imagenet}

# Other commands have flags of some of these names, and tests import several commands.
_MODEL = flags.DEFINE_string("model", None, f"The network: {', '.join(sorted(MODELS))}.")
_OUT = flags.DEFINE_string("out", None, "Model file to write.", allow_override=True)
_OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "Replace an existing model file.", allow_override=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Empty or new folder for a run that continues training.",
    allow_override=True,
)
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Settings of the run in --workdir, normalization and sizes too; by default those that siman_jax"
    " brings for the model, configs/cifar10.py or configs/imagenet.py.",
    allow_override=True,
)
_ENTRY = flags.DEFINE_string(
    "entry",
    "",
    "Entry of the checkpoint that holds the weights; by default the first one present of"
    " state_dict, model_state_dict, model and net.",
)
_TABLE = flags.DEFINE_bool("table", False, "Print each array, its shape, and its name here.")
_CLASSES = flags.DEFINE_string("classes", None, "Text file with one class name per line.")
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", None, "Height and width of the images; by default those of the model.", 1
)
_MEAN = flags.DEFINE_list(
    "mean", None, "Of each channel of pixels from 0 to 1, with commas between."
)
_STD = flags.DEFINE_list("std", None, "Likewise; by default both are those of the model.")


def main(argv: list[str]) -> None:
    """Run the command."""
    if len(argv) != 2:
        raise UsageError("name one checkpoint, such as model_best.pth.tar; flags are --NAME=VALUE.")
    if not (_MODEL.value and _OUT.value):
        raise UsageError("--model and --out are missing; name the network and the file to write.")
    name, out = _MODEL.value, local_path(_OUT.value, "--out")
    choose(MODELS, name, "model")
    check_output(out, "out", _OVERWRITE.value)
    config, workdir = _run_to_found()
    size = config.data.image_size if config else _IMAGE_SIZE.value
    class_names = _read_classes(_CLASSES.value)  # before torch, which takes seconds to import
    jax.config.update("jax_platforms", "cpu")
    state, variables, warnings = _read(local_path(argv[1], "checkpoint"), name, size)
    images = default_images(MODELS[name], _ends(variables)[1])
    images = images.of_size(size or images.size)
    notes = _notes(images, config, class_names)
    if config:
        _check_config(config, variables)
    network = pack_converted(name, variables, images.size, notes)
    for warning in warnings:
        say(f"warning: {warning}")
    if config:
        create_run(config, workdir, make_mesh(1), variables)
    write_program(out, network)
    if _TABLE.value:
        _print_table(state.arrays)
    print(_summary(name, state, network))
    if config:
        print(shown(f"{workdir}: a run at step 0 with these weights; siman_jax.main continues it"))
    print(shown(f"{out}: {out.stat().st_size:,} bytes"))


def _read(path: Path, name: str, size: int | None) -> tuple[State, dict, list[str]]:
    """A checkpoint's weights, the variables that they make, and warnings about them."""
    state = read_state(path, _ENTRY.value)
    try:
        variables = variables_from_torch(name, state.arrays, size)
        variables[BITS], warnings = stored_bits(variables, _RULES["weight_rule"])
    except UsageError as error:
        raise UsageError(f"{path} cannot be converted: {error}") from error
    if state.averaged:
        warnings.append(
            f"the checkpoint also holds averaged weights (EMA), in {', '.join(state.averaged)};"
            f" those in {state.entry or 'the checkpoint itself'} were converted. To convert"
            f" averaged weights, add --entry={state.averaged[0]}"
        )
    return state, variables, warnings


def _summary(name: str, state: State, network: PackedProgram) -> str:
    """Describe what was converted."""
    used = {array: _place(array, state.arrays) for array in state.arrays}
    others = sum(path is None for path in used.values())
    bits = sum(state.arrays[array].size for array, path in used.items() if path and path[0] == BITS)
    source = f" of {state.entry}" if state.entry else ""
    shape = "x".join(map(str, network.image_shape))
    return (
        f"{name}: {len(used) - others} arrays{source} converted, {others} not needed; {bits:,}"
        f" bits, {network.num_classes} classes, images of {shape}"
    )


def _run_to_found() -> tuple[ConfigDict | None, Path]:
    """Return the config and folder of the run to create; the config is None without a run."""
    workdir = local_path(_WORKDIR.value or "", "--workdir")
    if _WORKDIR.value is None:
        if _CONFIG.value is not None:
            raise UsageError("--config needs a run; name its folder, such as --workdir=runs/tuned.")
        return None, workdir
    config = lock_config(_CONFIG.value or _config_of(_MODEL.value))
    if _MEAN.value or _STD.value or _IMAGE_SIZE.value:
        raise UsageError(
            "with --workdir, --mean, --std and --image_size come from the config; leave them out."
        )
    if config.model.name != _MODEL.value:
        raise UsageError(f"--model is {_MODEL.value}, but --config is for {config.model.name}.")
    if workdir.exists() and not (workdir.is_dir() and not any(workdir.iterdir())):
        raise UsageError(f"--workdir={workdir} is not empty; name a new folder.")
    check_workdir(config, workdir)
    check_writable(workdir)
    return config, workdir


def _config_of(model: str) -> ConfigDict:
    """The shipped config that trains `model`."""
    recipe, _, network = model.partition(".")
    return _CONFIGS[recipe].get_config(network.removesuffix("_1w1a"))


def _check_config(config: ConfigDict, variables: dict) -> None:
    here = {
        "num_classes": num_classes(config.data),
        "width": config.model.width,
        "weight_rule": config.model.weight_rule,
        "activation_rule": activation_rule(config),
        "channels": config.data.channels,
    }
    there = _arguments(variables) | {"channels": _ends(variables)[0].shape[2]}
    for name, value in here.items():
        if value != there[name]:
            raise UsageError(
                f"{name} is {there[name]} in the checkpoint, but {value} in the config. Choose"
                " another config by --config, or change its field."
            )


def pack_converted(name: str, variables: dict, size: int, notes: Notes) -> PackedProgram:
    """Pack converted variables with the bits that they hold.

    Args:
      name: key of `models.MODELS`.
      variables: `params`, `batch_stats` and `bits`.
      size: height and width of the network's images.
      notes: for the file.

    Raises:
      UsageError: the notes do not fit the network, or it cannot be packed.
    """
    stem, classes = _ends(variables)
    image_shape = (size, size, stem.shape[2])
    try:
        parse_notes(notes.as_json(), image_shape, classes)
    except UsageError as error:
        raise UsageError(f"--mean, --std or --classes do not fit the model: {error}") from error
    floats = jax.tree.map(lambda leaf: leaf if leaf.dtype == bool else np.float32(leaf), variables)
    program, _ = proven_program(build_model(name, **_arguments(variables)), floats, image_shape)
    return PackedProgram(program, notes.as_json())


def _arguments(variables: dict) -> dict[str, Any]:
    """Return the arguments of the network that has these variables."""
    stem, classes = _ends(variables)
    return {"num_classes": classes, "width": stem.shape[3], **_RULES}


def _ends(variables: dict) -> tuple[np.ndarray, int]:
    """Return the stem's kernel, and the number of classes."""
    params = variables["params"]
    stem = params["conv1"]["kernel"] if "kernel" in params["conv1"] else params["conv0"]["kernel"]
    return stem, params["fc"]["kernel"].shape[1]


def _notes(images: Images, config: ConfigDict | None, class_names: tuple[str, ...] | None) -> Notes:
    """Notes by a config, or by the flags and the images that the network is made for."""
    if config:
        return notes_from_config(config.data, class_names=class_names)
    return Notes(
        mean=_numbers(_MEAN.value, "mean") or images.mean,
        std=_numbers(_STD.value, "std") or images.std,
        shorter_side=images.shorter_side,
        class_names=class_names,
    )


def _numbers(texts: list[str] | None, flag: str) -> tuple[float, ...] | None:
    try:
        return tuple(float(text) for text in texts) if texts else None
    except ValueError as error:
        raise UsageError(
            f"--{flag}={','.join(texts or [])} is not a list of numbers, such as 0.5,0.5,0.5."
        ) from error


def _read_classes(name: str | None) -> tuple[str, ...] | None:
    if name is None:
        return None
    try:
        lines = local_path(name, "--classes").read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--classes={name} cannot be read: {error}.") from error
    return tuple(line.strip() for line in lines if line.strip())


def _place(name: str, arrays: Mapping[str, np.ndarray]) -> tuple[str, ...] | None:
    return flax_path(name, binary=f"{name.rpartition('.')[0]}.alpha" in arrays)


def _print_table(arrays: Mapping[str, np.ndarray]) -> None:
    table = Table("PyTorch", "shape", "here")
    for name, array in arrays.items():
        path = _place(name, arrays)
        shape = "x".join(map(str, array.shape)) or "1"
        table.add_row(shown(name), shape, "/".join(path) if path else "not needed")
    wide_console().print(table)


if __name__ == "__main__":
    run(main)
