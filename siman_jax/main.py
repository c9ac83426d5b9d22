"""Command line: train, evaluate or summarize the network of a config.

    python -m siman_jax.main --config=configs/digits.py --workdir=runs/digits
"""

import logging
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags
from rich.console import Console
from rich.table import Table

from siman_jax.errors import UsageError
from siman_jax.summary import print_summary
from siman_jax.train import evaluate_run, model_from_config, train

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "File of the run's settings: configs/NAME.py or configs/NAME.py:VARIANT."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: log, curves, checkpoints.")
_MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "eval", "summary"], "What to do with the network."
)


def main(argv: list[str]) -> None:
    """Do what the flags say."""
    del argv
    logging.getLogger().setLevel(logging.WARNING)  # absl lets every library's INFO through
    logging.getLogger("siman_jax").setLevel(logging.INFO)
    config = _CONFIG.value
    if _MODE.value == "summary":
        print_summary(model_from_config(config), config)
        return
    if not _WORKDIR.value:
        raise UsageError("--workdir is missing: name the folder for log and checkpoints.")
    workdir = Path(_WORKDIR.value).expanduser()
    if _MODE.value == "train":
        train(config, workdir)
    _print_evaluation(evaluate_run(config, workdir))


def _print_evaluation(results: dict[str, dict[str, float]]) -> None:
    table = Table(title="test split")
    for heading in ("checkpoint", "epoch", "loss", "top-1 (%)", "top-5 (%)"):
        table.add_column(heading, justify="right")
    for name, row in results.items():
        numbers = (f"{row['loss']:.4f}", f"{row['top1']:.2f}", f"{row['top5']:.2f}")
        table.add_row(name, str(row["epoch"]), *numbers)
    Console().print(table)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    try:
        app.run(main)
    except UsageError as error:
        sys.exit(f"error: {error}")
