"""Save and resume: the only file that knows orbax."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
from orbax.checkpoint import v1 as ocp

from siman_jax.errors import UsageError

State = TypeVar("State")

_METRIC = "top1"
_log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run: the last few and the best.

    Args:
      directory: where they are kept, a folder for each step.
      keep: how many of the latest to keep, beside the best.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        policies = ocp.training.preservation_policies
        self._directory = directory.absolute()
        self._checkpointer = ocp.training.Checkpointer(
            self._directory,
            preservation_policy=policies.AnyPreservationPolicy(
                [policies.LatestN(keep), policies.BestN(get_metric_fn=_top1, n=1)]
            ),
            cleanup_tmp_directories=True,
        )

    def save(self, step: int, state: Any, top1: float) -> None:
        """Save `state` under `step`; return when it is safe on disk.

        Args:
          step: optimiser steps taken.
          state: a tree of arrays.
          top1: test accuracy in percent, by which the best is known.
        """
        self._checkpointer.save(step, state, metrics={_METRIC: top1}, force=True)

    def restore_latest(self, like: State) -> State | None:
        """Restore the latest checkpoint that can be read, or None if there is none at all.

        Damaged checkpoints are moved to `damaged-checkpoints` beside the directory, with a
        warning, and the one before is tried.

        Args:
          like: a state of the structure, shapes, dtypes and devices to restore into.

        Raises:
          UsageError: there are checkpoints, but none can be read.
        """
        return self._restore_first(like, lambda saved: saved.step)

    def restore_best(self, like: State) -> State | None:
        """Restore the checkpoint with the best test accuracy, the earliest among equals.

        Damage is treated, and errors are raised, as by `restore_latest`.
        """
        return self._restore_first(like, lambda saved: (_top1(saved.metrics), -saved.step))

    def _restore_first(self, like: State, preference: Callable[[Any], Any]) -> State | None:
        abstract = jax.tree.map(_abstract, like)
        failures: dict[int, Exception] = {}
        for saved in sorted(self._checkpointer.checkpoints, key=preference, reverse=True):
            try:
                state = self._checkpointer.load(saved.step, abstract)
            except Exception as error:  # orbax and tensorstore raise whatever damage leads to
                failures[saved.step] = error
                _log.warning("checkpoint %d cannot be read; trying another: %s", saved.step, error)
                continue
            self._set_aside(list(failures))
            return state
        if failures:
            raise UsageError(
                f"none of the checkpoints {sorted(failures)} in {self._directory} can be read"
                f" ({failures[max(failures)]}). Restore them from a copy, or use a new workdir."
            )
        return None

    def _set_aside(self, steps: list[int]) -> None:
        for step in steps:
            aside = self._directory.parent / "damaged-checkpoints"
            aside.mkdir(exist_ok=True)
            (self._directory / str(step)).rename(aside / str(step))
        if steps:
            self._checkpointer.reload()

    def close(self) -> None:
        """Release orbax's threads."""
        self._checkpointer.close()


def _top1(metrics: Any) -> float:
    return metrics[_METRIC]


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
