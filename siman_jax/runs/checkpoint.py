"""Save and resume: the only file that knows orbax.

All processes of a run call these functions alike; each writes and reads what lies on its own
devices, whatever mesh a checkpoint was written from.
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
from siman_jax.errors import UsageError
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
_SECONDS_OF_REMOVAL = 2.0  # what removing a folder takes at most, on a busy machine
_DESCRIPTION = "_CHECKPOINT_METADATA"  # of a checkpoint: orbax's file, which holds our checksums
_log = logging.getLogger(__name__)


class CheckpointWriter:
    """Saves the checkpoints of one run, and keeps the last few and the best.

    What stands in the way is moved to `damaged-checkpoints` beside the directory, with a
    warning: checkpoints beyond `step`, and those whose metrics cannot be read.

    Args:
      directory: where checkpoints are kept, a folder for each step.
      keep: how many of the latest to keep, beside the best; at equal accuracy the later one.
      step: the step that training goes on from.

    Raises:
      UsageError: the directory cannot be made or written.
    """

    def __init__(self, directory: Path, keep: int, step: int) -> None:
        self._directory, self._failed = directory, False
        logging.getLogger("absl").addFilter(_is_not_raised_too)
        policies = ocp.training.preservation_policies
        with self._writing("old checkpoints could not be put in order in"):
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
        """Save `state` under `step`; return when it is safe on disk.

        Args:
          step: optimiser steps taken.
          state: a tree of arrays.
          top1: test accuracy in percent, by which the best is known; None where training was
            interrupted before it could be measured.

        Raises:
          UsageError: it cannot be written, for want of space for instance; earlier checkpoints
            are as they were.
        """
        metrics = {_METRIC: _NOT_EVALUATED if top1 is None else top1}
        checksums = checksums_of(state, top1).as_json()
        with self._writing(f"the checkpoint of step {step} could not be written to"):
            # An epoch that could not be evaluated is saved again when it is.
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
        """Release orbax's threads; an error that `save` raised is not raised again."""
        try:
            self._checkpointer.close()
        except Exception:  # orbax keeps the error of the last save
            if not self._failed:
                raise

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        """Write with orbax; raise `UsageError` at once where the disk refuses."""
        context = ocp.Context()
        # In the background orbax's threads would wait minutes for a folder that cannot be made.
        context.asynchronous.create_directories_asynchronously = False
        hook = sys.unraisablehook
        sys.unraisablehook = partial(_unless_loop_is_closed, hook)
        try:
            with context:
                yield
            sys.unraisablehook = hook  # after a failure it stays, until all threads have ended
        except jax.errors.JaxRuntimeError:  # another process is gone: no fault of the disk
            raise
        except Exception as error:  # orbax and tensorstore raise whatever the disk's refusal led to
            self._failed = True
            raise UsageError(
                f"{what} {self._directory}: {_first_line(error)}\nEarlier checkpoints are as they"
                " were. Make room, or mend the folder's permissions; then the same command goes on"
                " from the latest."
            ) from error


def restore_latest(directory: Path, like: State) -> State | None:
    """Restore the latest checkpoint that can be read, or None if there is none at all.

    Where one cannot be read, or its checksums do not match, a warning says so and the one before
    is tried. Nothing on disk changes. Checkpoints of earlier versions have no checksums.

    Args:
      directory: as given to `CheckpointWriter`.
      like: a state of the structure, shapes, dtypes and devices to restore into; the mesh may be
        another than the checkpoint's.

    Raises:
      UsageError: there are checkpoints, but none can be read, or they are of another network.
    """
    return _restore_first(directory, like, lambda step: step)


def restore_best(directory: Path, like: State) -> State | None:
    """Restore the checkpoint with the best test accuracy, the latest among equals.

    The rest is as for `restore_latest`.
    """

    def accuracy_then_step(step: int) -> tuple[float, int]:
        top1 = _top1(directory, step)
        if top1 is None and not removed_meanwhile(directory / str(step)):
            _log.warning("the accuracy of checkpoint %d cannot be read; it may be the best", step)
        return (-math.inf if top1 is None else top1, step)

    return _restore_first(directory, like, accuracy_then_step)


def restore_step(directory: Path, step: int, like: State) -> State:
    """Restore the checkpoint of one step.

    The rest is as for `restore_latest`.

    Raises:
      UsageError: it cannot be read, or is of another network.
    """
    path = directory.absolute() / str(step)
    restored, error = _try_restore(path, jax.tree.map(_abstract, like))
    if error is not None:
        raise UsageError(f"the checkpoint {path} cannot be read: {_first_line(error)}.")
    return restored


def verify_checkpoint(directory: Path, step: int) -> bool:
    """Read a checkpoint as it is, and compare its checksums.

    Args:
      directory: as given to `CheckpointWriter`.
      step: of the checkpoint.

    Returns:
      Whether it has checksums; an earlier version wrote none.

    Raises:
      UsageError: it is damaged.
    """
    path = directory.absolute() / str(step)
    here = SingleDeviceSharding(jax.local_devices()[0])
    try:
        tree, stored = _describe(path)
    except Exception as caught:  # orbax and tensorstore raise whatever damage leads to
        raise UsageError(
            f"the checkpoint {path} cannot be read: {_first_line(caught)}."
        ) from caught
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), tree
    )
    _, error = _try_restore(path, abstract)
    if error is None and _top1(directory, step) is None:
        error = OSError("its metrics are damaged")
    if error is not None:
        raise UsageError(f"the checkpoint {path} cannot be read: {_first_line(error)}.")
    return stored is not None


def saved_steps(directory: Path) -> list[int]:
    """Steps of the finished checkpoints; orbax renames a folder to its step at the end."""
    if not directory.is_dir():
        return []
    return [int(path.name) for path in directory.iterdir() if path.name.isdecimal()]


def removed_meanwhile(path: Path) -> bool:
    """Whether a checkpoint that could not be read is gone: a run that trains removed it.

    Its files go one by one, so where a later checkpoint exists this waits a little for the last.
    """
    deadline = time.monotonic() + _SECONDS_OF_REMOVAL
    while path.exists():
        later = max(saved_steps(path.parent), default=0) > int(path.name)
        if not later or time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def leaf_shape(directory: Path, name: str) -> tuple[int, ...] | None:
    """Shape of one leaf in the latest checkpoint whose description can be read, None if none can.

    Args:
      directory: as given to `CheckpointWriter`.
      name: path of the leaf, such as "progress/state/step".
    """
    for step in sorted(saved_steps(directory), reverse=True):
        path = directory.absolute() / str(step)
        try:
            tree, _ = _describe(path)
        except Exception as error:  # orbax and tensorstore raise whatever damage leads to
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
    # Listed anew each time: a run that trains meanwhile removes checkpoints for later ones.
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
    """Restore a checkpoint, or give the reason why it cannot be; in all processes alike."""
    restored, stored, error = None, None, None
    try:
        stored = _stored_checksums(path)
        saved = stored.shapes if stored else leaf_shapes(_metadata(path))
        _check_same(saved, leaf_shapes(abstract), path)
        restored = ocp.load(path, abstract)
    except UsageError:
        raise
    except Exception as caught:  # orbax and tensorstore raise whatever damage leads to
        error = caught
        _ignore_dropped_reads()
    if all_agree(error is None):
        wrong = mismatch(leaf_checksums(restored), stored) if stored else None
        error = OSError(wrong) if wrong else None
        if all_agree(error is None):
            return restored, None
    return None, error or OSError("another process could not read it")


def _describe(path: Path) -> tuple[Any, Checksums | None]:
    """What `_metadata` gives, and the checksums of the same leaves if there are any.

    Raises:
      Exception: as `_metadata` and `_stored_checksums` do, or they contradict each other.
    """
    tree, stored = _metadata(path), _stored_checksums(path)
    if stored and stored.shapes != leaf_shapes(tree):
        raise OSError("its metadata are damaged")
    return tree, stored


def _metadata(path: Path) -> Any:
    """Dtypes and shapes of a checkpoint as a tree, as orbax describes them.

    Raises:
      Exception: of any kind, as orbax and tensorstore do; the description is damaged.
    """
    tree = ocp.metadata(path).metadata
    if not leaf_shapes(tree):  # what orbax makes of a file that is cut short
        raise OSError("its metadata are damaged")
    return tree


def _stored_checksums(path: Path) -> Checksums | None:
    """Checksums of a checkpoint, None where an earlier version wrote it.

    Raises:
      OSError, ValueError, KeyError, TypeError: they are damaged.
    """
    return parse_checksums(json.loads((path / _DESCRIPTION).read_text())["custom_metadata"])


def _check_same(saved: dict[str, Any], expected: dict[str, Any], path: Path) -> None:
    """Refuse the checkpoint of another network, naming the first leaf that tells."""
    for name in sorted(saved.keys() | expected.keys()):
        there, here = saved.get(name, "missing"), expected.get(name, "missing")
        if there != here:
            raise UsageError(
                f"the checkpoint {path} is of another network: {name} is {there} there and {here}"
                " here. Use the config that it was trained with, or another workdir."
            )


def _top1(directory: Path, step: int) -> float | None:
    """Test accuracy of a checkpoint, -inf where it was not measured, None where unreadable."""
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
    """False for errors that orbax's threads log, a thousand lines each, and `save` raises."""
    return record.levelno < logging.ERROR or "orbax" not in Path(record.pathname).parts


@cache
def _ignore_dropped_reads() -> None:
    """Drop Python's reports, a page each, on reads that orbax gave up after another one failed."""
    sys.unraisablehook = partial(_unless_loop_is_closed, sys.unraisablehook)
    logging.getLogger("asyncio").addFilter(
        lambda record: not record.getMessage().startswith("Task exception was never retrieved")
    )


def _unless_loop_is_closed(hook: Callable[[Any], Any], unraisable: Any) -> None:
    """Keep quiet what was under way when a save failed, and says so a dozen times."""
    if str(unraisable.exc_value) != "Event loop is closed":
        hook(unraisable)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
