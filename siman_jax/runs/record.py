"""The files that a run writes while it trains: config, checkpoints, log and curves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from siman_jax.data.dataset import Dataset
from siman_jax.devices.mesh import is_first_process
from siman_jax.models.leaves import Bits
from siman_jax.output import remove_drafts
from siman_jax.runs.checkpoint import CheckpointWriter
from siman_jax.runs.curves import draw_curves
from siman_jax.runs.dispensable import Dispensable
from siman_jax.runs.lock import RunLock
from siman_jax.runs.log import Results, RunLog, last_and_best, read_rows
from siman_jax.runs.snapshot import Snapshot
from siman_jax.runs.stored_run import CHECKPOINTS
from siman_jax.runs.trained_on import write_trained_on
from siman_jax.runs.workdir import claim_workdir
from siman_jax.training.epoch import Progress


class RunRecord:
    """Writes the files of one run.

    Args:
      config: the run's config.
      dataset: the data that the run trains on.
      lock: lock of the run's folder; a new folder is created and locked here.
      workdir: the run's folder.
      step: step from which training continues.
      bits: bits of every binary kernel at the end of the previous epoch.

    Attributes:
      workdir: the run's folder.
      bits: as given; updated by the caller after each epoch.
    """

    def __init__(
        self,
        config: ConfigDict,
        dataset: Dataset,
        workdir: Path,
        lock: RunLock,
        step: int,
        bits: Bits,
    ) -> None:
        lock.make_folder()
        if is_first_process():
            remove_drafts(workdir)
        claim_workdir(config, workdir)
        write_trained_on(dataset, workdir)
        self.workdir, self.bits = workdir, bits
        self._checkpoints = CheckpointWriter(workdir / CHECKPOINTS, config.keep_checkpoints, step)
        self._log = RunLog(workdir, step, write=is_first_process())
        self._curves = Dispensable(f"the curves in {workdir}")

    def save(self, progress: Progress, top1: float | None) -> None:
        """Save a checkpoint; `top1` is None if it was not measured."""
        snapshot = Snapshot(progress, self.bits)
        self._checkpoints.save(int(progress.state.step), snapshot, top1)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append an epoch's row to the log."""
        self._log.write(row)

    def draw(self) -> None:
        """Draw the curves."""
        if is_first_process():
            with self._curves:
                draw_curves(self.workdir)

    def results(self) -> Results:
        """Return the last and the best epoch from the log; {} in processes that do not log."""
        return last_and_best(read_rows(self.workdir)) if is_first_process() else {}

    def close(self) -> None:
        """Close all files, and draw the curves."""
        self._log.close()
        self._checkpoints.close()
        self.draw()
