"""The data that a run was trained on: names of the classes and number of examples.

They are kept in the run's folder, so that labels keep their meaning when folders of images change.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from siman_jax.data.dataset import Dataset
from siman_jax.devices.mesh import all_agree, is_first_process
from siman_jax.errors import UsageError
from siman_jax.output import write_whole

_FILE = "data.json"


@dataclass(frozen=True)
class TrainedOn:
    """What a run keeps of its data.

    Attributes:
      classes: name of each label, in order.
      train_examples: size of the training split.
    """

    classes: tuple[str, ...]
    train_examples: int


def read_trained_on(workdir: Path) -> TrainedOn | None:
    """Read what a run was trained on; None where it has not begun, or an older version began it.

    Raises:
      UsageError: the file is damaged.
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
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{path} is damaged ({error}). Restore it, or delete it: then the run goes on, but"
            " cannot tell whether its data have changed."
        ) from None
    return TrainedOn(tuple(names), count)


def write_trained_on(dataset: Dataset, workdir: Path) -> None:
    """Keep what a run is trained on; of several processes, the first one does.

    Raises:
      UsageError: the file cannot be written; in all processes alike.
    """
    problem = ""
    if is_first_process():
        now = asdict(TrainedOn(dataset.classes, len(dataset.train)))
        try:
            write_whole(workdir / _FILE, (json.dumps(now, indent=2) + "\n").encode())
        except UsageError as error:
            problem = str(error)
    if not all_agree(not problem):
        raise UsageError(problem or f"the first process cannot write {workdir / _FILE}.")


def check_classes(classes: Sequence[str], workdir: Path) -> None:
    """Check that data have the classes that a run was trained on, in the same order.

    Raises:
      UsageError: with those that differ.
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
        f" ({'; '.join(changes) or 'in another order'}). Name the folder that it was trained on, or"
        " train in a new workdir."
    )


def check_trained_on(dataset: Dataset, workdir: Path) -> None:
    """Check that a run can go on with `dataset`: the same classes, and as many examples.

    Raises:
      UsageError: with what differs.
    """
    check_classes(dataset.classes, workdir)
    before = read_trained_on(workdir)
    if before is not None and before.train_examples != len(dataset.train):
        raise UsageError(
            f"the training split has {len(dataset.train)} examples now, and had"
            f" {before.train_examples} when the run in {workdir} began: its epochs and schedules"
            " would not fit. Give it the data that it began with, or train in a new workdir."
        )
