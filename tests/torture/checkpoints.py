"""Checkpoints with flipped bits, cut, emptied, lost and exchanged files.

What is restored has to be what was saved at some step, bit for bit, and with a warning where it is
not the one that was asked for.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from siman_jax.errors import UsageError
from siman_jax.runs.checkpoint import (
    CheckpointWriter,
    restore_best,
    restore_latest,
    saved_steps,
    verify_checkpoint,
)

from .case import Finding, choose
from .damage import flip

_STEPS = (5, 10, 15)
_TOP1 = {5: 61.5, 10: 98.5, 15: 70.25}
_BEST = 10
_FILES = 40  # more than a checkpoint has
_GO_ON = 5  # after one case in so many a training goes on in the folder


class Checkpoints:
    seconds = 300
    lifetime = 150

    def __init__(self, scratch: Path) -> None:
        self._whole, self._damaged = scratch / "whole", scratch / "damaged"
        self._states = [{step: _state(size, step) for step in _STEPS} for size in (7, 90)]
        for number, states in enumerate(self._states):
            if (self._whole / str(number)).exists():
                continue
            writer = CheckpointWriter(self._whole / str(number), keep=3, step=0)
            for step, state in states.items():
                writer.save(step, state, _TOP1[step])
            writer.close()
        self._heard = _Heard()
        logger = logging.getLogger("siman_jax")
        logger.addHandler(self._heard)
        logger.propagate = False
        self._tried = 0

    def make(self, rng: np.random.Generator) -> bytes:
        steps = choose(rng, [[15], [15], [10], [10, 15], [5, 10, 15]])
        damage = [[step, *_damage(rng)] for step in steps for _ in range(int(rng.integers(1, 3)))]
        return json.dumps({"sample": int(rng.integers(2)), "damage": damage}).encode()

    def check(self, case: bytes) -> Mapping[str, int]:
        plan = json.loads(case)
        states = self._states[plan["sample"]]
        shutil.rmtree(self._damaged, ignore_errors=True)
        folder = self._damaged / "checkpoints"
        shutil.copytree(self._whole / str(plan["sample"]), folder)
        touched = any([_apply(folder, *one) for one in plan["damage"]])
        counts = {"corrupted": 1 if touched else 0}
        whole = self._verify(folder, states)
        for restore, asked in ((restore_latest, _STEPS[-1]), (restore_best, _BEST)):
            word = self._restore(restore, asked, folder, states)
            counts[word] = counts.get(word, 0) + 1
            if asked in whole and word not in ("restored bit for bit",):
                raise Finding(f"verified as whole, but {restore.__name__} is {word}")
        self._tried += 1
        if self._tried % _GO_ON == 0:
            counts |= self._go_on(folder, states)
        return counts

    def _verify(self, folder: Path, states: Any) -> set[int]:
        whole = set()
        for step in saved_steps(folder):
            try:
                if verify_checkpoint(folder, step):
                    whole.add(step)
            except UsageError:
                continue
        return whole

    def _restore(self, restore: Any, asked: int, folder: Path, states: Any) -> str:
        self._heard.lines.clear()
        try:
            found = restore(folder, states[asked])
        except UsageError:
            return "refused"
        warned = bool(self._heard.lines)
        if found is None:
            if (folder / str(asked)).exists():
                raise Finding(f"{restore.__name__} says that there is none")
            return "refused"
        for step, state in states.items():
            if _same(found, state):
                if step == asked:
                    return "restored bit for bit"
                if not warned:
                    raise Finding(f"{restore.__name__} gives step {step}, and no word of {asked}")
                return "an earlier one restored, with a warning"
        raise Finding(f"silent: {restore.__name__} gives what was never saved")

    def _go_on(self, folder: Path, states: Any) -> dict[str, int]:
        """Train on from whatever can be restored."""
        try:
            found = restore_latest(folder, states[_STEPS[-1]])
            step = 0 if found is None else int(found["step"])
            writer = CheckpointWriter(folder, keep=3, step=step)
            writer.save(step + 1, states[5], 50.0)
            writer.close()
        except UsageError:
            return {"not gone on, with a word": 1}
        if not _same(restore_latest(folder, states[5]), states[5]):
            raise Finding("after damage, what is saved next is not what is restored")
        return {"gone on": 1}


class _Heard(logging.Handler):
    """Keeps what is warned of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _state(size: int, step: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng([size, step])
    return {
        "kernel": jnp.asarray(rng.standard_normal((3, 3, size, size)), jnp.float32),
        "half": jnp.asarray(rng.standard_normal(size), jnp.bfloat16),
        "bits": jnp.asarray(rng.random((size, 2)) < 0.5),
        "step": jnp.int32(step),
    }


def _same(one: Any, other: Any) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(
        a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs
    )


def _damage(rng: np.random.Generator) -> list[Any]:
    """Number of a file, what to do to it, and where."""
    what = choose(rng, ["flip"] * 6 + ["cut", "zero", "empty", "remove", "append", "exchange"])
    return [int(rng.integers(_FILES)), what, float(rng.random()), int(rng.integers(8))]


def _apply(folder: Path, step: int, number: int, what: str, place: float, bit: int) -> bool:
    """Damage a file; whether it is another one then."""
    files = _files(folder / str(step))
    if not files:
        return False
    path = files[number % len(files)]
    before = path.read_bytes()
    if what == "remove":
        path.unlink()
        return True
    cut = int(place * len(before))
    if what == "exchange":
        others = _files(folder / str(5 if step != 5 else 10))
        after = others[number % len(others)].read_bytes() if others else before
    else:
        after = {
            "flip": flip(before, place, bit),
            "cut": before[:cut],
            "zero": before[:cut] + bytes(min(512, len(before) - cut)) + before[cut + 512 :],
            "empty": b"",
            "append": before + bytes(range(bit + 1)),
        }[what]
    path.write_bytes(after)
    return after != before


def _files(folder: Path) -> list[Path]:
    """Files of a checkpoint, in an order that random names in it do not change."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(
        files, key=lambda path: (str(path.parent.relative_to(folder)), path.stat().st_size)
    )
