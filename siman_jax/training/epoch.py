"""Run an epoch on the devices: many training steps, or an evaluation, compiled for a mesh."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from siman_jax.devices.mesh import on_cpus, replicated
from siman_jax.errors import UsageError
from siman_jax.models.normalization import normalize
from siman_jax.native.dispatch import native
from siman_jax.program.interpret import interpret
from siman_jax.program.operations import Program
from siman_jax.program.prove import COMPARED, Programs, Unequal
from siman_jax.program.reader import Untraceable
from siman_jax.training.metrics import Sums, score
from siman_jax.training.step import Step, TrainState

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
    constants: Sequence[Any] = (),
) -> Compiled | Callable[..., Any]:
    """Compile the training steps of one call of `feed`; with JAX_DISABLE_JIT set, do not compile.

    Args:
      step: function of state, normalized images, labels and `constants`; maps over seeds if the
        batches of `feed` are of several seeds.
      feed: the source of batches.
      progress: the progress to start from; only its shapes and shardings matter.
      mesh: the devices.
      data: with `mean` and `std`, for normalization.
      use_native: whether to use the C++ library.
      constants: arrays that every step takes, on the devices, such as those of a teacher.

    Returns:
      Function of the progress, which is donated, the inputs of a call, the number of steps to take,
      and the constants. It returns the new progress, the first step whose loss is not finite (-1 if
      there is none), and the number of examples counted in the epoch (the smallest over seeds).
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, progress)

    @partial(jax.jit, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))
    def run(
        progress: Progress, inputs: Any, count: Array, *constants: Any
    ) -> tuple[Progress, tuple[Array, Array]]:
        def one(_: Any, carry: tuple[Progress, Array]) -> tuple[Progress, Array]:
            before, bad = carry
            at = before.state.step
            batch = feed.take(inputs, at)
            images = normalize(batch.images, data.mean, data.std)
            after, sums = step(before.state, images, batch.labels, *constants)
            bad = jnp.where((bad < 0) & ~jnp.all(jnp.isfinite(sums.loss)), at, bad)
            return Progress(after, before.sums + sums), bad

        start = (progress, jnp.full((), -1, jnp.int32))
        many = feed.steps_per_call > 1
        progress, bad = lax.fori_loop(0, count, one, start) if many else one(0, start)
        return progress, (bad, jnp.min(progress.sums.count))

    if jax.config.jax_disable_jit:  # type: ignore[attr-defined,unused-ignore]  # newer JAX types it
        return run
    started = time.perf_counter()
    with native(use_native, for_cpu=on_cpus(mesh)):
        compiled = run.lower(progress, feed.abstract, jnp.int32(1), *constants).compile()
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
    constants: Sequence[Any] = (),
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
      constants: as for `compile_steps`.

    Returns:
      Function of the progress; `advance`, called with the number of steps dispatched; and
      `should_stop`, called with the step reached, which returns whether to stop there. It returns
      the new progress. It raises, in all processes, `Diverged` if the loss of any seed is not
      finite, and `UsageError` if more examples than `damaged_limit` cannot be decoded.
    """
    compiled = compile_steps(
        step, feed, progress, mesh, data, use_native=use_native, constants=constants
    )

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
            progress, verdict = compiled(progress, inputs, jnp.int32(count), *constants)
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

    It runs the network's program, as packed inference does, so that both predict the same. Each
    evaluation proves the program equal to `model.apply` on a few images of the first batch. It runs
    `model.apply` itself if the network cannot be packed or the proof fails, and logs why.

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
    everywhere = replicated(mesh)
    programs: Programs | None = None
    packable = True
    warn = cache(_log.warning)  # once, not every epoch

    @partial(jax.jit, out_shardings=everywhere)
    def first_images(batch: Batch) -> Array:
        return normalize(batch.images[:COMPARED], data.mean, data.std)

    def proven(variables: Any, batch: Batch) -> Program | None:
        nonlocal programs, packable
        if not packable:
            return None
        images = first_images(batch)
        try:
            programs = programs or Programs(model, variables, images, everywhere)
            return programs(variables, images)[0]
        except Untraceable as error:
            packable = False
            _log.info("evaluating by model.apply: %s", error)
        except Unequal as error:
            warn("evaluating by model.apply: %s", str(error))
        return None

    @partial(jax.jit, donate_argnums=0, out_shardings=everywhere)
    def step(sums: Sums, network: Program | Mapping, batch: Batch) -> Sums:
        images = normalize(batch.images, data.mean, data.std)
        if isinstance(network, Program):
            logits: Any = interpret(network, images, native=use_native)
        else:
            logits = model.apply(network, images, train=False)
        return sums + score(logits, batch.labels)

    def evaluate(variables: Any) -> dict[str, float]:
        with native(use_native, for_cpu=on_cpus(mesh)):
            sums, network = no_sums(mesh), variables
            for index, batch in enumerate(batches):
                if index == 0:
                    network = proven(variables, batch) or variables
                sums = step(sums, network, batch)
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
