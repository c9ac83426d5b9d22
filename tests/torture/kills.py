"""Trainings, sweeps and exports killed at any moment, then started again until they end.

What they leave has to be, bit for bit, what an undisturbed one leaves.
"""

import json
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .case import Finding, choose
from .commands import IN_MEMORY, TINY, Trap, empty, finish, prepare, start, tail, wait
from .pictures import write_folder
from .results import contents, difference

_STREAMED = [
    *("main", "--config=configs/imagenet.py", "--config.data.source=image_folder"),
    *(f"--config.model.name={TINY}", "--config.model.width=4"),
    *("--config.eval_batch_size=8", "--config.epochs=3", "--config.keep_checkpoints=2"),
    *("--config.batch_size=8", "--config.data.num_classes=0", "--config.data.image_size=8"),
    *("--config.data.shorter_side=10", "--config.data.test_split=val"),
    "--config.native=False",
]
_SWEEP = ["sweep", "tests/torture/tiny_sweep.py"]
_WHAT = ["memory", "memory", "streamed", "streamed", "sweep", "export", "export"]


class Kills:
    seconds = 1200
    lifetime = 10_000

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._output = scratch / "output.txt"
        prepare(scratch)
        self._expected: dict[str, dict[str, Any]] = {}
        self._seconds: dict[str, float] = {}
        self._events: dict[str, int] = {}

    def make(self, rng: np.random.Generator) -> bytes:
        what = choose(rng, _WHAT)
        kills = []
        for _ in range(int(rng.integers(6, 13))):
            number = signal.SIGTERM if rng.random() < 0.1 else signal.SIGKILL
            at_file = rng.random() < 0.8
            kills.append(
                {
                    "signal": int(number),
                    "at": "file" if at_file else "time",
                    "share": float(rng.random() ** 1.5),  # less is left of a run that goes on
                    "delay": float(choose(rng, [0, 0, 0.003, 0.02])) if at_file else 0.0,
                }
            )
        workers = int(rng.random() < 0.05)
        return json.dumps({"what": what, "kills": kills, "workers": workers}).encode()

    def check(self, case: bytes) -> Mapping[str, int]:
        plan = json.loads(case)
        what = plan["what"]
        expected = self._undisturbed(what)
        target = empty(self._scratch / "killed") / "run"
        words = self._words(what, target, plan["workers"])
        counts = {"kills": 0, "stops by SIGTERM": 0, "ended before": 0}
        for kill in plan["kills"]:
            if kill["at"] == "file":
                event, delay = 1 + int(kill["share"] * self._events[what]), kill["delay"]
            else:
                event, delay = 0, kill["share"] * self._seconds[what]
            trap = Trap(kill["signal"], target.parent, event, delay)
            status = wait(start(words, self._output, trap))
            if status == -signal.SIGKILL and kill["signal"] == signal.SIGKILL:
                counts["kills"] += 1
            elif status in (75, -signal.SIGTERM) and kill["signal"] == signal.SIGTERM:
                counts["stops by SIGTERM"] += 1
            elif status == 0:
                counts["ended before"] += 1
                if what != "export":  # which begins anew each time
                    break
            else:
                raise Finding(f"ends with {status} after {kill}:\n{tail(self._output)}")
            if what == "export":
                self._check_whole(target, expected)
        finish(words, self._output)
        different = difference(self._contents(what, target), expected)
        if different:
            raise Finding(f"after {plan['kills']} another result. {different}")
        counts[f"{what}: the same as undisturbed"] = 1
        return {word: number for word, number in counts.items() if number}

    def _undisturbed(self, what: str) -> dict[str, Any]:
        """What an undisturbed command leaves; a second one tells how long it takes."""
        if what not in self._expected:
            target = empty(self._scratch / "undisturbed" / what) / "run"
            words = self._words(what, target)
            finish(words, self._output)
            self._expected[what] = self._contents(what, target)
            again = empty(self._scratch / "again") / "run"
            started = time.monotonic()
            count = Trap(0, again.parent, 0, 1e6)
            status = wait(start(self._words(what, again), self._output, count))
            self._seconds[what] = time.monotonic() - started
            if status:
                raise Finding(f"a second one ends with {status}:\n{tail(self._output)}")
            self._events[what] = int(self._output.with_suffix(".events").read_text())
            different = difference(self._contents(what, again), self._expected[what])
            if different:
                raise Finding(f"two undisturbed ones differ: {different}")
        return self._expected[what]

    def _words(self, what: str, target: Path, workers: int = 0) -> list[str]:
        if what == "memory":
            return [*IN_MEMORY, f"--workdir={target}"]
        if what == "streamed":
            root = self._scratch / "images"
            if not root.exists():
                write_folder(root)
            of_data = f"--config.data.root={root}", f"--config.data.workers={workers}"
            return [*_STREAMED, *of_data, f"--workdir={target}"]
        if what == "sweep":
            return [*_SWEEP, f"--workdir={target}"]
        self._undisturbed("memory")
        run = self._scratch / "undisturbed" / "memory" / "run"
        return ["export", str(run), f"--out={target}", "--overwrite"]

    def _contents(self, what: str, target: Path) -> dict[str, Any]:
        if what == "export":
            return {"file": target.read_bytes().hex()}
        return contents(target, self._scratch)

    def _check_whole(self, target: Path, expected: dict[str, Any]) -> None:
        if target.exists() and target.read_bytes().hex() != expected["file"]:
            raise Finding("a model file that is not whole")
