"""Two trainings in one folder: one trains, the other waits for nothing and says who is there."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .case import Finding
from .commands import IN_MEMORY, empty, finish, prepare, start, tail, wait
from .results import contents, difference


class Writers:
    seconds = 900
    lifetime = 10_000

    def __init__(self, scratch: Path) -> None:
        prepare(scratch)
        self._scratch = scratch
        self._outputs = scratch / "first.txt", scratch / "second.txt"
        undisturbed = empty(scratch / "undisturbed") / "run"
        finish([*IN_MEMORY, f"--workdir={undisturbed}"], self._outputs[0])
        self._expected = contents(undisturbed, scratch)

    def make(self, rng: np.random.Generator) -> bytes:
        return json.dumps({"delay": float(rng.uniform(0, 4) * (rng.random() < 0.7))}).encode()

    def check(self, case: bytes) -> Mapping[str, int]:
        target = empty(self._scratch / "both") / "run"
        words = [*IN_MEMORY, f"--workdir={target}"]
        first = start(words, self._outputs[0])
        time.sleep(json.loads(case)["delay"])
        second = start(words, self._outputs[1])
        ends = [wait(first), wait(second)]
        for status, output in zip(ends, self._outputs, strict=True):
            text = tail(output)
            if status not in (0, 2) or "Traceback" in text:
                raise Finding(f"ends with {status}:\n{text}")
            if status == 2 and "another training" not in text:
                raise Finding(f"is refused without the reason:\n{text}")
        if 0 not in ends:
            raise Finding("both are refused")
        if different := difference(contents(target, self._scratch), self._expected):
            raise Finding(f"another result. {different}")
        return {"one refused" if 2 in ends else "one after the other": 1}
