"""Check the files of a run for damage, without changing them."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from siman_jax.errors import UsageError
from siman_jax.runs.checkpoint import saved_steps, verify_checkpoint
from siman_jax.runs.log import FILE_NAME, read_rows
from siman_jax.runs.stored_run import CHECKPOINTS, is_removed
from siman_jax.runs.trained_on import read_trained_on
from siman_jax.runs.workdir import read_config


class Finding(NamedTuple):
    """The state of a file or checkpoint.

    Attributes:
      name: path of the file in the run's folder.
      whole: False if it is damaged.
      text: description of its contents, or of the damage.
    """

    name: str
    whole: bool
    text: str


def verify_run(workdir: Path) -> list[Finding]:
    """Check the files that a run needs to continue: config, data, log and every checkpoint.

    Every checkpoint is read completely. Those of earlier versions have no checksums; for them the
    check is only that they can be read.

    Args:
      workdir: the run's folder.

    Raises:
      UsageError: there is no run in it.
    """
    if not workdir.is_dir() or not any(
        (workdir / name).exists() for name in ("config.json", FILE_NAME, CHECKPOINTS)
    ):
        raise UsageError(
            f"there is no run in {workdir}; expected config.json, log.jsonl and checkpoints. Name"
            " the folder of a run."
        )
    findings = [_config(workdir), _data(workdir), _log(workdir), *_checkpoints(workdir)]
    return [*findings, *_set_aside(workdir)]


def _config(workdir: Path) -> Finding:
    try:
        return Finding("config.json", True, f"network {read_config(workdir).model.name}")
    except (UsageError, AttributeError) as error:
        return Finding("config.json", False, str(error))


def _data(workdir: Path) -> Finding:
    try:
        data = read_trained_on(workdir)
    except (UsageError, OSError) as error:
        return Finding("data.json", False, str(error))
    if data is None:
        return Finding("data.json", True, "does not exist; earlier versions wrote none")
    text = f"{data.train_examples} examples of {len(data.classes)} classes"
    return Finding("data.json", True, text)


def _log(workdir: Path) -> Finding:
    """Check that each line is an epoch's row, in order; a kill may cut the last one short."""
    try:
        lines = (workdir / FILE_NAME).read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return Finding(FILE_NAME, True, "does not exist; no epoch has ended")
    except OSError as error:
        return Finding(FILE_NAME, False, str(error))
    cut = bool(lines) and not lines[-1].endswith(b"\n")
    wrong = [
        number for number, line in enumerate(lines[: len(lines) - cut], 1) if not _is_json(line)
    ]
    if wrong:
        return Finding(FILE_NAME, False, f"line {wrong[0]} cannot be read")
    rows = read_rows(workdir)
    epochs = [row["epoch"] for row in rows]
    if len(rows) < len(lines) - cut:
        return Finding(FILE_NAME, False, "a line is not an epoch's row")
    if any(after <= before for before, after in pairwise(epochs)):
        return Finding(FILE_NAME, False, f"its epochs are not in order: {epochs}")
    end = "; the last line is cut short and will be written again" if cut else ""
    return Finding(FILE_NAME, True, f"{len(rows)} epoch{'s' * (len(rows) != 1)}{end}")


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _checkpoints(workdir: Path) -> Iterator[Finding]:
    steps = sorted(saved_steps(workdir / CHECKPOINTS))
    if not steps:
        yield Finding(CHECKPOINTS, True, "there are none")
    for step in steps:
        name = f"{CHECKPOINTS}/{step}"
        try:
            checked = verify_checkpoint(workdir / CHECKPOINTS, step)
        except UsageError as error:
            if not is_removed(workdir, step):
                yield Finding(name, False, str(error))
            continue
        text = "all checksums match" if checked else "can be read; it has no checksums"
        yield Finding(name, True, text)


def _set_aside(workdir: Path) -> Iterator[Finding]:
    folder = workdir / "damaged-checkpoints"
    if folder.is_dir() and (count := len(list(folder.iterdir()))):
        yield Finding(folder.name, True, f"{count} moved here when training was resumed")
