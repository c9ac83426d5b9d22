"""Run an epoch on the devices: many training steps, or an evaluation, compiled for a mesh."""

import logging
import time
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax
from jax.sharding import Mesh
from jax.stages import Compiled
from ml_collections import ConfigDict

from siman_jax.data.feed import Batch, Feed
from siman_jax.devices.communication import communication, describe
from siman_jax.devices.mesh import replicated
from siman_jax.errors import UsageError
from siman_jax.models.folding import COMPARED, NotFoldable, fold, folded_twin, same_logits
from siman_jax.models.normalization import normalize
from siman_jax.native.dispatch import native
from siman_jax.training.metrics import Sums
from siman_jax.training.step import Step, TrainState, eval_step

_log = logging.getLogger(__name__)

Evaluator = Callable[[Any], dict[str, float]]


@struct.dataclass
class Progress:
    """A training state and the metrics of the current epoch.

    Attributes:
      state: the state after the last step.
      sums: loss and hits since the start of the epoch.
    """

    state: TrainState
    sums: Sums


EpochRunner = Callable[[Progress, Callable[[int], None], Callable[[int], bool]], Progress]


def compile_steps(
    step: Step,
    feed: Feed,
    progress: Progress,
    mesh: Mesh,
    data: ConfigDict,
    *,
    use_native: bool,
) -> Compiled | Callable[..., Any]:
    """Compile the training steps of one call of `feed`; with JAX_DISABLE_JIT set, do not compile.

    Args:
      step: function of state, normalized images and labels; maps over seeds if the batches of
        `feed` are of several seeds.
      feed: the source of batches.
      progress: the progress to start from; only its shapes and shardings matter.
      mesh: the devices.
      data: with `mean` and `std`, for normalization.
      use_native: whether to use the C++ library.

    Returns:
      Function of the progress, which is donated, the inputs of a call, and the number of steps to
      take. It returns the new progress, the first step whose loss is not finite (-1 if there is
      none), and the number of examples counted in the epoch (the smallest over seeds).
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, progress)

    @partial(jax.jit, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))
    def run(progress: Progress, inputs: Any, count: Array) -> tuple[Progress, tuple[Array, Array]]:
        def one(_: Any, carry: tuple[Progress, Array]) -> tuple[Progress, Array]:
            before, bad = carry
            at = before.state.step
            batch = feed.take(inputs, at)
            images = normalize(batch.images, data.mean, data.std)
            after, sums = step(before.state, images, batch.labels)
            bad = jnp.where((bad < 0) & ~jnp.all(jnp.isfinite(sums.loss)), at, bad)
            return Progress(after, before.sums + sums), bad

        start = (progress, jnp.full((), -1, jnp.int32))
        many = feed.steps_per_call > 1
        progress, bad = lax.fori_loop(0, count, one, start) if many else one(0, start)
        return progress, (bad, jnp.min(progress.sums.count))

    if jax.config.jax_disable_jit:  # type: ignore[attr-defined,unused-ignore]  # newer JAX types it
        return run
    started = time.perf_counter()
    with native(use_native):
        compiled = run.lower(progress, feed.abstract, jnp.int32(1)).compile()
    _log.info("compiled the training step in %.1f s", time.perf_counter() - started)
    if mesh.size > 1:
        _log.info("%s", describe(communication(compiled.as_text() or ""), mesh.size))
    return compiled


def make_epoch_runner(
    step: Step,
    feed: Feed,
    progress: Progress,
    mesh: Mesh,
    data: ConfigDict,
    *,
    batch_size: int,
    damaged_limit: int,
    use_native: bool,
) -> EpochRunner:
    """Compile a function that trains to the end of the current epoch.

    Args:
      step: as for `compile_steps`.
      feed: the source of batches.
      progress: as for `compile_steps`.
      mesh: the devices.
      data: as for `compile_steps`.
      batch_size: examples in a step, over all devices.
      damaged_limit: number of damaged images that an epoch may have.
      use_native: whether to use the C++ library.

    Returns:
      Function of the progress; `advance`, called with the number of steps dispatched; and
      `should_stop`, called with the step reached, which returns whether to stop there. It returns
      the new progress. It raises, in all processes, `Diverged` if the loss of any seed is not
      finite, and `UsageError` if more examples than `damaged_limit` cannot be decoded.
    """
    compiled = compile_steps(step, feed, progress, mesh, data, use_native=use_native)

    def run_epoch(
        progress: Progress,
        advance: Callable[[int], None],
        should_stop: Callable[[int], bool],
    ) -> Progress:
        at = int(progress.state.step)
        begin = at - at % feed.steps_per_epoch
        unchecked = None

        def check(reached: int, bad: Array, counted: Array) -> None:
            if (step := int(bad)) >= 0:
                raise diverged(step)
            damaged = (reached - begin) * batch_size - int(counted)
            check_damage(damaged, damaged_limit, "training")

        for inputs, count in feed.calls(at):
            progress, verdict = compiled(progress, inputs, jnp.int32(count))
            # Check the previous call: waiting for this one would leave the device idle.
            if unchecked:
                check(*unchecked)
            at += count
            unchecked = (at, *verdict)
            advance(count)
            if should_stop(at):
                break
        if unchecked:
            check(*unchecked)
        return progress

    return run_epoch


def make_evaluator(
    model: nn.Module,
    batches: Iterable[Batch],
    examples: int,
    mesh: Mesh,
    data: ConfigDict,
    *,
    damaged_limit: int,
    use_native: bool,
) -> Evaluator:
    """Compile a function from variables to mean loss, top-1 and top-5 (percent) on `batches`.

    The network is folded first, as for packing, so that evaluation predicts what the packed network
    predicts. Each evaluation compares the logits of a few images with those of `model.apply`. If
    they differ, it uses `model.apply` instead, with a warning.

    Args:
      model: the network.
      batches: batches of one shape; iterated over in each evaluation.
      examples: number of examples in them.
      mesh: the devices.
      data: with `mean` and `std`, for normalization.
      damaged_limit: number of damaged images that they may have.
      use_native: whether to use the C++ library.

    Returns:
      The function. It raises `UsageError`, in all processes, if more examples than `damaged_limit`
      cannot be decoded.
    """
    settle = jax.jit(partial(fold, model), out_shardings=replicated(mesh))
    warn = cache(_log.warning)  # once, not every epoch

    def normalized(batch: Batch) -> Array:
        return normalize(batch.images, data.mean, data.std)

    # Used on a few images only, so it should compile fast.
    options = {"xla_backend_optimization_level": 0}

    @partial(jax.jit, out_shardings=replicated(mesh), compiler_options=options)
    def compare(variables: Any, folded: Any, batch: Batch) -> Array:
        return same_logits(model, variables, folded, normalized(batch)[:COMPARED])

    def try_folding(variables: Any, batch: Batch) -> Any:
        try:
            folded = settle(variables)
            if compare(variables, folded, batch):
                return folded
            reason = "the folded network gives other logits"
        except NotFoldable as error:
            reason = str(error)
        warn("evaluating by model.apply, because this network cannot be folded: %s", reason)
        return None

    @partial(jax.jit, donate_argnums=0, static_argnums=3, out_shardings=replicated(mesh))
    def step(sums: Sums, variables: Any, batch: Batch, is_folded: bool) -> Sums:
        network = folded_twin(model) if is_folded else model
        return sums + eval_step(variables, normalized(batch), batch.labels, model=network)

    def evaluate(variables: Any) -> dict[str, float]:
        with native(use_native):
            sums, folded = no_sums(mesh), None
            for index, batch in enumerate(batches):
                folded = try_folding(variables, batch) if index == 0 else folded
                sums = step(sums, folded or variables, batch, folded is not None)
        check_damage(examples - int(sums.count), damaged_limit, "test")
        return sums.means()

    return evaluate


def no_sums(mesh: Mesh) -> Sums:
    """Sums over no examples, on every device."""
    return jax.jit(Sums.zero, out_shardings=replicated(mesh))()


class Diverged(UsageError):  # noqa: N818
    """The loss or a parameter is not finite."""


def diverged(step: int) -> Diverged:
    """Make the error of a run whose loss or a parameter is not finite at `step`."""
    return Diverged(
        f"the loss or a parameter is not finite at step {step}; training stopped. Checkpoints of"
        " earlier steps are kept. Lower --config.optimizer.learning_rate, and train in a new"
        " workdir."
    )


def check_damage(damaged: int, limit: int, split: str) -> None:
    """Check that an epoch has at most `limit` damaged examples, over all processes.

    Raises:
      UsageError: there are more.
    """
    if damaged > limit:
        raise UsageError(
            f"{damaged} {split} images of this epoch could not be decoded, and"
            f" --config.data.damaged_limit is {limit}. See the warnings above for their names, in"
            " the output of all processes. Fix or remove them, or raise the limit to leave them"
            " out."
        )
