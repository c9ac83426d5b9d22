"""How far training is: a bar with the time left on a terminal, plain lines elsewhere."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from siman_jax.terminal import shown


class TrainingProgress:
    """Counts steps while they run and prints a line an epoch.

    Args:
      total: steps of the whole training.
      done: steps taken before now.
      show: whether to print at all; of several processes, one does.
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
        """Count `steps` more."""
        self._bar.advance(self._task, steps)

    def report(self, row: Mapping[str, Any], run: str = "") -> None:
        """Print an epoch's row of the log, and before it which `run` it is of."""
        self._console.print(
            f"{shown(run) + '  ' if run else ''}epoch {row['epoch']:3d}  step {row['step']:6d}"
            f"  lr {row['learning_rate']:.4f}"
            f"  train loss {row['train_loss']:.4f}  top-1 {row['train_top1']:6.2f} %"
            f"  test loss {row['test_loss']:.4f}  top-1 {row['test_top1']:6.2f} %"
            f"  {row['images_per_second']:.0f} images/s"
        )

    def close(self) -> None:
        """Take the bar off the terminal."""
        self._bar.stop()
