"""Save and restore checkpoints; the only file that uses orbax.

All processes of a run must call these functions with the same arguments. Each process writes and
reads the arrays on its own devices. A checkpoint can be restored on another mesh.
"""

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from siman_jax.devices.mesh import all_agree, is_first_process
from siman_jax.errors import UsageError, first_line
from siman_jax.runs.checksums import (
    Checksums,
    checksums_of,
    leaf_checksums,
    leaf_shapes,
    mismatch,
    parse_checksums,
)

State = TypeVar("State")

_METRIC = "top1"
_NOT_EVALUATED = -math.inf
_SECONDS_OF_REMOVAL = 2.0  # enough to remove a folder, even on a busy machine
_DESCRIPTION = "_CHECKPOINT_METADATA"  # orbax's file in a checkpoint; it holds our checksums
_log = logging.getLogger(__name__)


class CheckpointWriter:
    """Saves the checkpoints of one run, and keeps the latest few and the best.

    Checkpoints beyond `step`, and those whose metrics cannot be read, are moved to the folder
    `damaged-checkpoints` beside the directory, with a warning.

    Args:
      directory: folder of the checkpoints, with a folder for each step.
      keep: number of latest checkpoints to keep, beside the best; of equals the latest is best.
      step: step from which training continues.

    Raises:
      UsageError: the directory cannot be created or written.
    """

    def __init__(self, directory: Path, keep: int, step: int) -> None:
        self._directory, self._failed = directory, False
        logging.getLogger("absl").addFilter(_is_not_raised_too)
        policies = ocp.training.preservation_policies
        with self._writing("old checkpoints could not be moved in"):
            if is_first_process():
                for saved in saved_steps(directory):
                    if saved > step or _top1(directory, saved) is None:
                        _set_aside(directory / str(saved))
            multihost_utils.sync_global_devices("old checkpoints are out of the way")
            self._checkpointer = ocp.training.Checkpointer(
                directory.absolute(),
                preservation_policy=policies.AnyPreservationPolicy(
                    [
                        policies.LatestN(keep),
                        policies.BestN(get_metric_fn=lambda m: m[_METRIC], n=1),
                    ]
                ),
                cleanup_tmp_directories=True,
            )

    def save(self, step: int, state: Any, top1: float | None) -> None:
        """Save `state` under `step`, and wait until it is on disk.

        Args:
          step: number of optimizer steps taken.
          state: a tree of arrays.
          top1: test accuracy in percent, which decides the best checkpoint; None if training was
            interrupted before it was measured.

        Raises:
          UsageError: it cannot be written, for example because the disk is full; earlier
            checkpoints are unchanged.
        """
        metrics = {_METRIC: _NOT_EVALUATED if top1 is None else top1}
        checksums = checksums_of(state, top1).as_json()
        with self._writing(f"the checkpoint of step {step} could not be written to"):
            # An epoch that could not be evaluated is saved again once it is.
            exists = (self._directory / str(step)).exists()
            self._checkpointer.save(
                step,
                state,
                metrics=metrics,
                custom_metadata=checksums,
                force=True,
                overwrite=exists,
            )

    def close(self) -> None:
        """Stop orbax's threads; do not raise an error of `save` again."""
        try:
            self._checkpointer.close()
        except Exception:  # orbax raises the error of the last save again
            if not self._failed:
                raise

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        """Write with orbax; raise `UsageError` at once if the disk refuses."""
        context = ocp.Context()
        # In the background, orbax's threads would wait minutes for a folder that cannot be created.
        context.asynchronous.create_directories_asynchronously = False
        hook = sys.unraisablehook
        sys.unraisablehook = partial(_unless_loop_is_closed, hook)
        try:
            with context:
                yield
            sys.unraisablehook = hook  # not after a failure: threads may still be ending
        except jax.errors.JaxRuntimeError:  # another process is gone; the disk is not at fault
            raise
        except Exception as error:  # when the disk refuses, orbax and tensorstore raise any error
            self._failed = True
            raise UsageError(
                f"{what} {self._directory}: {first_line(error)}\nEarlier checkpoints are"
                " unchanged. Free some space or fix the folder's permissions; then run the same"
                " command to continue from the latest."
            ) from error


def restore_latest(directory: Path, like: State) -> State | None:
    """Restore the latest readable checkpoint; None if there are no checkpoints.

    If one cannot be read or its checksums do not match, a warning says so and the one before it is
    tried. Nothing on disk changes. Checkpoints of earlier versions have no checksums.

    Args:
      directory: as given to `CheckpointWriter`.
      like: a state with the structure, shapes, dtypes and shardings to restore; the mesh may differ
        from the checkpoint's.

    Raises:
      UsageError: there are checkpoints, but none can be read, or they are of another network.
    """
    return _restore_first(directory, like, lambda step: step)


def restore_best(directory: Path, like: State) -> State | None:
    """Restore the checkpoint with the best test accuracy, the latest of equals.

    Everything else is as for `restore_latest`.
    """

    def accuracy_then_step(step: int) -> tuple[float, int]:
        top1 = _top1(directory, step)
        if top1 is None and not removed_meanwhile(directory / str(step)):
            _log.warning("the accuracy of checkpoint %d cannot be read; it may be the best", step)
        return (-math.inf if top1 is None else top1, step)

    return _restore_first(directory, like, accuracy_then_step)


def restore_step(directory: Path, step: int, like: State) -> State:
    """Restore the checkpoint of one step.

    Everything else is as for `restore_latest`.

    Raises:
      UsageError: it cannot be read, or is of another network.
    """
    path = directory.absolute() / str(step)
    restored, error = _try_restore(path, jax.tree.map(_abstract, like))
    if error is not None:
        raise UsageError(f"the checkpoint {path} cannot be read: {first_line(error)}.")
    return restored


def verify_checkpoint(directory: Path, step: int) -> bool:
    """Read a whole checkpoint and compare its checksums.

    Args:
      directory: as given to `CheckpointWriter`.
      step: step of the checkpoint.

    Returns:
      Whether it has checksums; earlier versions wrote none.

    Raises:
      UsageError: it is damaged.
    """
    path = directory.absolute() / str(step)
    here = SingleDeviceSharding(jax.local_devices()[0])
    try:
        tree, stored = _describe(path)
    except Exception as caught:  # on damage, orbax and tensorstore raise any error
        _ignore_dropped_reads()
        raise UsageError(f"the checkpoint {path} cannot be read: {first_line(caught)}.") from caught
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), tree
    )
    _, error = _try_restore(path, abstract)
    if error is None and _top1(directory, step) is None:
        error = OSError("its metrics are damaged")
    if error is not None:
        raise UsageError(f"the checkpoint {path} cannot be read: {first_line(error)}.")
    return stored is not None


def saved_steps(directory: Path) -> list[int]:
    """List the steps of finished checkpoints, in any order.

    Orbax names the folder of a checkpoint by its step when it is finished.
    """
    if not directory.is_dir():
        return []
    return [int(path.name) for path in directory.iterdir() if path.name.isdecimal()]


def removed_meanwhile(path: Path) -> bool:
    """Whether a checkpoint that could not be read is gone, because a training run removed it.

    Its files are removed one by one, so if there is a later checkpoint this waits a little.
    """
    deadline = time.monotonic() + _SECONDS_OF_REMOVAL
    while path.exists():
        later = max(saved_steps(path.parent), default=0) > int(path.name)
        if not later or time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def leaf_shape(directory: Path, name: str) -> tuple[int, ...] | None:
    """Return the shape of a leaf in the latest readable checkpoint; None if there is none.

    Args:
      directory: as given to `CheckpointWriter`.
      name: path of the leaf, such as "progress/state/step".
    """
    for step in sorted(saved_steps(directory), reverse=True):
        path = directory.absolute() / str(step)
        try:
            tree, _ = _describe(path)
        except Exception as error:  # on damage, orbax and tensorstore raise any error
            _ignore_dropped_reads()
            if not removed_meanwhile(path):
                _log.warning("checkpoint %d cannot be read; trying another: %s", step, error)
            continue
        for place, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if jax.tree_util.keystr(place, simple=True, separator="/") == name:
                return tuple(leaf.shape)
    return None


def _restore_first(directory: Path, like: State, preference: Callable[[int], Any]) -> State | None:
    abstract = jax.tree.map(_abstract, like)
    failures: dict[int, Exception] = {}
    # List the steps each time, because a run that trains meanwhile replaces its checkpoints.
    while steps := set(saved_steps(directory)) - failures.keys():
        step = max(steps, key=preference)
        path = directory.absolute() / str(step)
        restored, error = _try_restore(path, abstract)
        if error is None:
            return restored
        if all_agree(removed_meanwhile(path)):
            continue
        failures[step] = error
        _log.warning("checkpoint %d cannot be read; trying another: %s", step, failures[step])
    if failures:
        raise UsageError(
            f"none of the checkpoints {sorted(failures)} in {directory} can be read"
            f" ({failures[max(failures)]}). Restore them from a copy, or use a new workdir."
        )
    return None


def _try_restore(path: Path, abstract: Any) -> tuple[Any, Exception | None]:
    """Restore a checkpoint, or return an error; all processes return the same of the two."""
    restored, stored, error = None, None, None
    try:
        stored = _stored_checksums(path)
        saved = stored.shapes if stored else leaf_shapes(_metadata(path))
        _check_same(saved, leaf_shapes(abstract), path)
        restored = ocp.load(path, abstract)
    except UsageError:
        raise
    except Exception as caught:  # on damage, orbax and tensorstore raise any error
        error = caught
        _ignore_dropped_reads()
    if all_agree(error is None):
        wrong = mismatch(leaf_checksums(restored), stored) if stored else None
        error = OSError(wrong) if wrong else None
        if all_agree(error is None):
            return restored, None
    return None, error or OSError("another process could not read it")


def _describe(path: Path) -> tuple[Any, Checksums | None]:
    """Read a checkpoint's metadata, and its checksums if it has any.

    Raises:
      Exception: one of the two is damaged, or they contradict each other.
    """
    tree, stored = _metadata(path), _stored_checksums(path)
    if stored and stored.shapes != leaf_shapes(tree):
        raise OSError("its metadata are damaged")
    return tree, stored


def _metadata(path: Path) -> Any:
    """Read the dtypes and shapes of a checkpoint as a tree, from orbax's metadata.

    Raises:
      Exception: of any kind, from orbax and tensorstore; the metadata are damaged.
    """
    tree = ocp.metadata(path).metadata
    if not leaf_shapes(tree):  # orbax returns this for a file that is cut short
        raise OSError("its metadata are damaged")
    return tree


def _stored_checksums(path: Path) -> Checksums | None:
    """Read the checksums of a checkpoint; None if an earlier version wrote it.

    Raises:
      OSError, ValueError, KeyError, TypeError: they are damaged.
    """
    return parse_checksums(json.loads((path / _DESCRIPTION).read_text())["custom_metadata"])


def _check_same(saved: dict[str, Any], expected: dict[str, Any], path: Path) -> None:
    """Check that a checkpoint has the leaves of this network; the error names the first other."""
    for name in sorted(saved.keys() | expected.keys()):
        there, here = saved.get(name, "missing"), expected.get(name, "missing")
        if there != here:
            raise UsageError(
                f"the checkpoint {path} is of another network: {name} is {there} there, {here}"
                " here. Use the config that it was trained with, or another workdir."
            )


def _top1(directory: Path, step: int) -> float | None:
    """Read the test accuracy of a checkpoint: -inf if not measured, None if not readable."""
    path = directory / str(step)
    try:
        top1 = float(json.loads((path / "metrics" / "metrics").read_text())[_METRIC])
        stored = _stored_checksums(path)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if stored is None:
        return top1
    return top1 if top1 == (_NOT_EVALUATED if stored.top1 is None else stored.top1) else None


def _set_aside(checkpoint: Path) -> None:
    folder = checkpoint.parent.parent / "damaged-checkpoints"
    folder.mkdir(exist_ok=True)
    free = (name for n in range(10**6) if not (name := folder / f"{checkpoint.name}-{n}").exists())
    _log.warning("moved %s to %s", checkpoint, checkpoint.rename(next(free)))


def _is_not_raised_too(record: logging.LogRecord) -> bool:
    """False for errors logged by orbax's threads, in a thousand lines each; `save` raises them."""
    return record.levelno < logging.ERROR or "orbax" not in Path(record.pathname).parts


@cache
def _ignore_dropped_reads() -> None:
    """Hide Python's long reports on reads that orbax dropped after another read failed."""
    sys.unraisablehook = partial(_unless_loop_is_closed, sys.unraisablehook)
    logging.getLogger("asyncio").addFilter(
        lambda record: not record.getMessage().startswith("Task exception was never retrieved")
    )


def _unless_loop_is_closed(hook: Callable[[Any], Any], unraisable: Any) -> None:
    """Hide the errors of tasks that were running when a save failed."""
    if str(unraisable.exc_value) != "Event loop is closed":
        hook(unraisable)


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
