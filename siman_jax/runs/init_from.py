"""Start a run from trained weights: those of another run, or of a PyTorch checkpoint."""

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from siman_jax.data import num_classes
from siman_jax.devices.mesh import put_replicated
from siman_jax.errors import UsageError
from siman_jax.models.transfer import Transfer, transfer
from siman_jax.paths import local_path
from siman_jax.pytorch.checkpoint import read_state
from siman_jax.pytorch.names import variables_by_name
from siman_jax.runs.snapshot import Create, Snapshot, first_snapshot, read_bits
from siman_jax.runs.stored_run import load_run
from siman_jax.runs.workdir import read_config
from siman_jax.training.epoch import Progress
from siman_jax.training.step import state_from
from siman_jax.training.task import image_shape, model_from_config

_log = logging.getLogger(__name__)


def start_from_weights(
    config: ConfigDict,
    create: Create,
    optimizer: optax.GradientTransformation,
    key: Array,
    layout: Snapshot,
    mesh: Mesh,
) -> Snapshot:
    """Create the snapshot of a run that starts from the weights that `config.init_from` names.

    What the source lacks starts as by `snapshot.first_snapshot`, and the optimizer anew. What was
    taken is logged; see `models.transfer`.

    Args:
      config: the run's config.
      create: result of `snapshot.creation`.
      optimizer: the optimizer.
      key: PRNG key for the parameters that start anew.
      layout: result of `abstract_snapshot`.
      mesh: the devices.

    Raises:
      UsageError: the weights cannot be read, or do not fit the network.
    """
    given, source = _read(config, mesh)
    first = first_snapshot(config, create, key, layout)
    result = _transfer(config, first.progress.state.variables(), given)
    _log.info("%s", _described(source, result))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, layout.progress.state)
    start = partial(state_from, optimizer=optimizer, averaged=bool(config.average_decay))
    state = jax.jit(start, out_shardings=shardings)(result.variables)
    bits = read_bits(state, config.model.weight_rule)
    return Snapshot(Progress(state, first.progress.sums), bits)


def check_transfer(config: ConfigDict, source: ConfigDict) -> None:
    """Check that the network of `config` can start from that of `source`, without any weights.

    Raises:
      UsageError: it cannot.
    """
    here, there = (_abstract(model_from_config(each), each) for each in (config, source))
    jax.eval_shape(lambda *both: _transfer(config, *both).variables, here, there)


def _transfer(config: ConfigDict, initial: Mapping[str, Any], given: Mapping[str, Any]) -> Transfer:
    try:
        return transfer(initial, given, config.model.weight_rule, partial(class_axes, config))
    except UsageError as error:
        raise UsageError(
            f"--config.init_from={config.init_from} cannot be taken: {error}\nSet --config.model to"
            " a network that they fit, or name other weights."
        ) from error


def _read(config: ConfigDict, mesh: Mesh) -> tuple[dict[str, Any], str]:
    """Read the weights, and describe where they come from."""
    path = local_path(config.init_from, "--config.init_from")
    if path.is_file():
        state = read_state(path)
        if state.averaged:
            _log.warning(
                "%s also holds averaged weights (EMA), in %s, which are not taken",
                path,
                ", ".join(state.averaged),
            )
        return put_replicated(mesh, variables_by_name(state.arrays)), str(path)
    if not path.is_dir():
        raise UsageError(
            f"--config.init_from={path}: there is no such file or folder. Name a run's folder, or a"
            " file written by torch.save."
        )
    best = config.init_checkpoint == "best"
    snapshot = load_run(read_config(path), path, mesh, best=best).progress.state
    return snapshot.evaluated(), f"{path}, step {int(snapshot.step)}"


def class_axes(config: ConfigDict) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Find the axes whose length is the number of classes, by a network with one class more.

    Args:
      config: the run's config.

    Returns:
      The axes of each leaf, by its path with the collection; {} if a network outside this package
      refuses the other number.
    """
    classes = num_classes(config.data)
    try:
        fewer, more = (
            _shapes(_abstract(model_from_config(config, classes=number), config))
            for number in (classes, classes + 1)
        )
    except UsageError:
        return {}
    return {
        path: tuple(axis for axis, size in enumerate(shape) if size != more[path][axis])
        for path, shape in fewer.items()
        if len(more.get(path, ())) == len(shape)
    }


def _abstract(model: nn.Module, config: ConfigDict) -> Any:
    """Shapes and dtypes of a network's variables."""
    images = jnp.zeros((1, *image_shape(config)))
    return jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)


def _shapes(variables: Any) -> dict[tuple[str, ...], tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in flatten_dict(variables).items()}


def _described(source: str, result: Transfer) -> str:
    parts = [f"started from {source}: {result.taken} arrays taken"]
    if result.made_binary:
        names = ", ".join(result.made_binary)
        parts.append(f"latent kernels from the real kernels of {names}")
    if result.new:
        parts.append(f"new: {', '.join(result.new)}")
    return "; ".join(parts)
