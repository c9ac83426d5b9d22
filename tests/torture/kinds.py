"""The kinds by name, and the share of a campaign's time that each gets."""

import importlib
from typing import Any, NamedTuple


class Entry(NamedTuple):
    """Where a kind is: module and class; and its share of the time."""

    module: str
    name: str
    share: float


KINDS = {
    "model_files": Entry("model_files", "ModelFiles", 2),
    "program_files": Entry("program_files", "ProgramFiles", 1),
    "images": Entry("images", "Images", 1),
    "checkpoints": Entry("checkpoints", "Checkpoints", 2),
    "records": Entry("records", "Records", 0.5),
    "configs": Entry("configs", "Configs", 0.5),
    "native_calls": Entry("native_calls", "NativeCalls", 0.5),
    "sanitized_calls": Entry("native_calls", "SanitizedCalls", 1),
    "kills": Entry("kills", "Kills", 5),
    "disks": Entry("disks", "Disks", 1),
    "writers": Entry("writers", "Writers", 0.5),
    "faulty": Entry("faulty", "Faulty", 0),  # for the tests of these tests
}


def load_kind(name: str) -> Any:
    """Class of a kind; others need not be importable."""
    entry = KINDS[name]
    return getattr(importlib.import_module(f".{entry.module}", __package__), entry.name)
