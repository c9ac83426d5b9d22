"""The contents of a checkpoint, from which a run continues as if it had never stopped."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import optax
from flax import struct
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from siman_jax.devices.mesh import largest_axis_sharded, replicated
from siman_jax.models.leaves import ROTATIONS, Bits, binary_bits
from siman_jax.training.epoch import Progress
from siman_jax.training.metrics import Sums
from siman_jax.training.step import TrainState, create_state
from siman_jax.training.task import image_shape


def state_bits(state: TrainState, weight_rule: str) -> Bits:
    """Return the bits of every binary kernel of a state; see `leaves.binary_bits`."""
    variables = state.variables()
    return binary_bits(variables["params"], weight_rule, variables.get(ROTATIONS))


read_bits = jax.jit(state_bits, static_argnames="weight_rule")


@struct.dataclass
class Snapshot:
    """Everything needed to continue a run.

    Attributes:
      progress: the state, whose step is also the position in the data, and the epoch's sums.
      bits: bits of every binary kernel at the end of the previous epoch.
    """

    progress: Progress
    bits: Bits


Create = Callable[[Array], TrainState]
"""Creates the state from which a run starts, from the PRNG key of its parameters."""


def creation(
    config: ConfigDict, model: nn.Module, optimizer: optax.GradientTransformation
) -> Create:
    """Return the function that creates the state from which a run of `config` starts.

    Tracing it takes a second. JAX knows by the function itself what it has traced, so both of the
    functions below are to be given one and the same.
    """
    return partial(
        create_state,
        model,
        optimizer,
        image_shape=image_shape(config),
        averaged=bool(config.average_decay),
    )


def abstract_snapshot(config: ConfigDict, create: Create, mesh: Mesh) -> Snapshot:
    """Return the shapes, dtypes and shardings of a run's snapshots on `mesh`."""
    state = jax.eval_shape(create, jax.random.key(0))
    bits = read_bits.eval_shape(state, config.model.weight_rule)
    shapes = Snapshot(Progress(state, jax.eval_shape(Sums.zero)), bits)
    shardings = jax.tree.map(lambda _: replicated(mesh), shapes)
    if config.shard_optimizer:
        opt_state = largest_axis_sharded(mesh, state.opt_state)
        sharded = shardings.progress.state.replace(opt_state=opt_state)
        shardings = shardings.replace(progress=shardings.progress.replace(state=sharded))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def first_snapshot(config: ConfigDict, create: Create, key: Array, layout: Snapshot) -> Snapshot:
    """Create the snapshot from which training starts.

    Args:
      config: the run's config.
      create: result of `creation`.
      key: PRNG key for the parameters.
      layout: result of `abstract_snapshot`.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, layout)
    # It runs once, so it should compile fast; with optimization XLA takes ten times longer on CPUs.
    options = {"xla_backend_optimization_level": 0}
    state = jax.jit(create, out_shardings=shardings.progress.state, compiler_options=options)(key)
    sums = jax.jit(Sums.zero, out_shardings=shardings.progress.sums)()
    return Snapshot(Progress(state, sums), read_bits(state, config.model.weight_rule))
