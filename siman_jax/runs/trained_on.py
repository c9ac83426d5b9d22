"""The data that a run was trained on: names of the classes and number of examples.

They are stored in the run's folder, so that labels keep their meaning when image folders change.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from siman_jax.data.dataset import Dataset
from siman_jax.errors import UsageError
from siman_jax.runs.facts import write_facts

_FILE = "data.json"


@dataclass(frozen=True)
class TrainedOn:
    """Facts about a run's data.

    Attributes:
      classes: name of each label, in order.
      train_examples: number of examples in the training split.
    """

    classes: tuple[str, ...]
    train_examples: int


def read_trained_on(workdir: Path) -> TrainedOn | None:
    """Read a run's facts; None if it has not started, or an older version started it.

    Raises:
      UsageError: the file is damaged or cannot be read.
    """
    path = workdir / _FILE
    try:
        fields = json.loads(path.read_text())
        names, count = fields["classes"], fields["train_examples"]
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise ValueError("classes are not a list of names")
        if type(count) is not int or count < 1:
            raise ValueError("train_examples is not a number above 0")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}. Fix it, or restore it from a copy."
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{path} is damaged ({error}). Restore it from a copy, or delete it; without it the run"
            " can continue, but changes of its data go unnoticed."
        ) from None
    return TrainedOn(tuple(names), count)


def write_trained_on(dataset: Dataset, workdir: Path) -> None:
    """Store the facts about a run's data; see `facts.write_facts`."""
    write_facts(asdict(TrainedOn(dataset.classes, len(dataset.train))), workdir / _FILE)


def check_classes(classes: Sequence[str], workdir: Path) -> None:
    """Check that data have the classes that a run was trained on, in the same order.

    Raises:
      UsageError: they do not; the message lists differences.
    """
    before = read_trained_on(workdir)
    if before is None or tuple(classes) == before.classes:
        return
    missing = [name for name in before.classes if name not in classes]
    new = [name for name in classes if name not in before.classes]
    changes = [
        f"{what} {', '.join(names[:5])}{' ...' * (len(names) > 5)}"
        for what, names in (("missing:", missing), ("new:", new))
        if names
    ]
    raise UsageError(
        f"the data have other classes than those that the run in {workdir} was trained on"
        f" ({'; '.join(changes) or 'in another order'}). Use the data that it was trained on, or"
        " train in a new workdir."
    )


def check_trained_on(dataset: Dataset, workdir: Path) -> None:
    """Check that `dataset` has the classes and the number of examples that a run was trained on.

    Raises:
      UsageError: it does not; the message says what differs.
    """
    check_classes(dataset.classes, workdir)
    before = read_trained_on(workdir)
    if before is not None and before.train_examples != len(dataset.train):
        raise UsageError(
            f"the training split has {len(dataset.train)} examples now, and had"
            f" {before.train_examples} when the run in {workdir} started, so its epochs would"
            " differ. Use the data that it started with, or train in a new workdir."
        )
