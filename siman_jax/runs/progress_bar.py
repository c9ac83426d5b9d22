"""Show the progress of training: a bar with the time left on a terminal, plain lines elsewhere."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from siman_jax.terminal import shown


class ProgressBar:
    """Counts steps, and prints a line for each epoch.

    Args:
      total: number of steps of the whole training.
      done: number of steps taken before.
      show: whether to print at all; only one process of a run should.
    """

    def __init__(self, total: int, done: int, show: bool = True) -> None:
        self._console = Console(highlight=False, markup=False, soft_wrap=True, quiet=not show)
        self._bar = Progress(
            TextColumn("step"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("time left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (show and self._console.is_terminal),
        )
        self._task = self._bar.add_task("", total=total, completed=done)
        self._bar.start()

    def advance(self, steps: int) -> None:
        """Count `steps` more steps."""
        self._bar.advance(self._task, steps)

    def report(self, row: Mapping[str, Any], run: str = "") -> None:
        """Print an epoch's row of the log, after the name of its `run`."""
        self._console.print(
            f"{shown(run) + '  ' if run else ''}epoch {row['epoch']:3d}  step {row['step']:6d}"
            f"  lr {row['learning_rate']:.4f}"
            f"  train loss {row['train_loss']:.4f}  top-1 {row['train_top1']:6.2f} %"
            f"  test loss {row['test_loss']:.4f}  top-1 {row['test_top1']:6.2f} %"
            f"  {row['images_per_second']:.0f} images/s"
        )

    def close(self) -> None:
        """Remove the bar from the terminal."""
        self._bar.stop()
