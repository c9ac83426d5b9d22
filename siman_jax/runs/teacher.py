"""The teacher of a run: read from its own run's folder, and the same when training goes on."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from siman_jax.data import num_classes
from siman_jax.errors import UsageError
from siman_jax.paths import local_path
from siman_jax.runs.facts import write_facts
from siman_jax.runs.stored_run import load_run, with_stored_classes
from siman_jax.runs.trained_on import read_trained_on
from siman_jax.runs.workdir import read_config
from siman_jax.training.distillation import Distillation
from siman_jax.training.task import model_from_config

_FILE = "teacher.json"
_FLAG = "--config.distillation.teacher"
# Fields of the data that decide what a network sees.
_INPUT = ("image_size", "channels", "mean", "std")


@dataclass(frozen=True)
class Identity:
    """Which weights a teacher has.

    Attributes:
      step: of its checkpoint.
      sha256: of its variables, in hexadecimal.
    """

    step: int
    sha256: str


@dataclass(frozen=True)
class Teacher:
    """A teacher that is ready to be used.

    Attributes:
      distillation: its network, and how much it counts.
      variables: on the devices.
      identity: which weights these are.
    """

    distillation: Distillation
    variables: dict[str, Any]
    identity: Identity


def read_teacher(config: ConfigDict, classes: tuple[str, ...], mesh: Mesh) -> Teacher | None:
    """Read the last checkpoint of the run that `config.distillation.teacher` names.

    If that run averages its weights, the average teaches.

    Args:
      config: of the student.
      classes: names of the student's classes.
      mesh: the devices.

    Returns:
      The teacher; None if the config has none.

    Raises:
      UsageError: there is no such run, or it has other classes or other input than the student.
    """
    distillation = config.distillation
    if not distillation.teacher:
        return None
    folder = local_path(distillation.teacher, _FLAG)
    try:
        there = with_stored_classes(read_config(folder), folder)
        _check_fits(there, folder, config, classes)
        state = load_run(there, folder, mesh).progress.state
    except UsageError as error:
        raise UsageError(f"{_FLAG}={folder} cannot teach this run: {error}") from error
    variables = state.evaluated()
    return Teacher(
        Distillation(model_from_config(there), distillation.temperature, distillation.weight),
        variables,
        Identity(int(state.step), _digest(variables)),
    )


def check_teacher(teacher: Teacher | None, workdir: Path) -> None:
    """Check that the run in `workdir`, if it has started, learns from the same weights as before.

    Raises:
      UsageError: it does not, or the file with the identity is damaged.
    """
    path = workdir / _FILE
    if teacher is None or not path.is_file():
        return
    try:
        before = Identity(**json.loads(path.read_text()))
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{path} is damaged ({error}). Restore it from a copy, or delete it; without it the run"
            " can continue, but changes of its teacher go unnoticed."
        ) from None
    if before != teacher.identity:
        raise UsageError(
            f"the teacher of {workdir} has other weights, of step {teacher.identity.step}, than"
            f" when the run started, of step {before.step}. Restore the teacher from a copy, or"
            " train in a new workdir."
        )


def write_teacher(teacher: Teacher, workdir: Path) -> None:
    """Store which weights teach the run in `workdir`; see `facts.write_facts`."""
    write_facts(asdict(teacher.identity), workdir / _FILE)


def _check_fits(
    there: ConfigDict, folder: Path, here: ConfigDict, classes: tuple[str, ...]
) -> None:
    pairs = {"num_classes": (num_classes(there.data), num_classes(here.data))}
    for name in _INPUT:
        pairs[name] = there.data[name], here.data[name]
    different = [
        f"{name} is {a} there, {b} here"
        for name, (a, b) in pairs.items()
        if not np.array_equal(a, b)
    ]
    if different:
        raise UsageError(
            f"its images or classes are others: {'; '.join(different)}. Name a teacher that was"
            " trained with these settings, or change those of config.data."
        )
    trained_on = read_trained_on(folder)
    if trained_on and trained_on.classes != tuple(classes):
        raise UsageError(
            "its classes have other names or another order, so its answers would be taken for"
            " those of other classes. Name a teacher that was trained on these classes."
        )


def _digest(variables: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        # Every process has all of a replicated array.
        array = np.asarray(leaf.addressable_data(0))
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
