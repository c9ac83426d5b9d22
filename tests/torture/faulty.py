"""A kind whose cases do what must be noticed: it shows that the others would be heard."""

import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .case import Finding, choose

_CASES = ["crash", "hang", "finding", "exception", "fine", "prints"]


class Faulty:
    seconds = 5
    lifetime = 100

    def __init__(self, scratch: Path) -> None: ...

    def make(self, rng: np.random.Generator) -> bytes:
        return choose(rng, _CASES).encode()

    def check(self, case: bytes) -> Mapping[str, int]:
        word = case.decode()
        if word == "crash":
            os.abort()
        if word == "hang":
            time.sleep(10**6)
        if word == "finding":
            raise Finding("something is wrong")
        if word == "exception":
            raise IndexError("of the product")
        if word == "prints":
            print("ready\n{}")
        return {word: 1}
