"""Profiles the kernels of a compiled program, to show where a device's time goes."""

import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

# Parts of the names of cuDNN's kernels.
_CONVOLUTION = re.compile("conv|fprop|dgrad|wgrad|cudnn", re.IGNORECASE)


class Kernel(NamedTuple):
    """One run of a kernel.

    Attributes:
      name: its name in the profile.
      instruction: the instruction of the compiled program that it belongs to; None if unknown.
      nanoseconds: its duration.
    """

    name: str
    instruction: str | None
    nanoseconds: float


def profile_kernels(
    run: Callable[[], object], program: str, steps: int, most: int = 40
) -> dict[str, Any] | None:
    """Profile a run of a compiled program.

    Args:
      run: takes the steps, and waits for them.
      program: text of the compiled program.
      steps: number of steps that `run` takes.
      most: how many kernels to list.

    Returns:
      None if no kernel can be assigned to the program. Otherwise a dictionary with
      "seconds_per_step": time of the program's kernels; if several run at once, each counts;
      "share_outside_convolutions": share of this time, 0 to 1;
      "share_told": share of the time of all kernels that could be assigned to the program;
      "longest": name, calls and milliseconds per step of the kernels that take most time.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        (path,) = Path(folder).rglob("*.xplane.pb")
        kernels = list(read_kernels(path))
    convolves = classifier(read_instructions(program))
    seconds = {True: 0.0, False: 0.0}
    calls, times = Counter[str](), Counter[str]()
    everything = 0.0
    for kernel in kernels:
        calls[kernel.name] += 1
        times[kernel.name] += kernel.nanoseconds
        everything += kernel.nanoseconds / 1e9
        known = convolves(kernel)
        if known is not None:
            seconds[known] += kernel.nanoseconds / 1e9
    told = sum(seconds.values())
    if not told:
        return None
    return {
        "seconds_per_step": told / steps,
        "share_outside_convolutions": seconds[False] / told,
        "share_told": told / everything,
        "longest": [
            {"kernel": name, "calls": calls[name] / steps, "milliseconds": time / 1e6 / steps}
            for name, time in times.most_common(most)
        ],
    }


def classifier(instructions: dict[str, bool]) -> Callable[[Kernel], bool | None]:
    """Build a function that tells whether a kernel is a convolution; None for unknown kernels.

    Kernels of CUDA graphs come without an instruction. Those of XLA have the name of the
    instruction, and those of cuDNN are recognized by the words in their name.
    """
    by_kernel = {re.sub(r"\W", "_", name): known for name, known in instructions.items()}

    def convolves(kernel: Kernel) -> bool | None:
        known = instructions.get(kernel.instruction or "", by_kernel.get(kernel.name))
        if known is None and kernel.instruction is None and _CONVOLUTION.search(kernel.name):
            return True
        return known

    return convolves


def read_kernels(path: Path) -> Iterator[Kernel]:
    """Yield the kernels in a profile, of all programs."""
    warnings.filterwarnings("ignore", "builtin type", DeprecationWarning)  # about JAX's own types
    planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
    # An accelerator has its own plane; the host's then shows only dispatch.
    own = [plane for plane in planes if plane.name.startswith("/device:")]
    for plane in own or planes:
        for line in plane.lines:
            for event in line.events:
                instruction = dict(event.stats).get("hlo_op")
                if instruction is None and line.name == "XLA Ops":  # on a TPU
                    instruction = event.name.removeprefix("%").partition(" ")[0]
                # On a GPU, streams hold kernels; other lines hold sums or marks.
                if instruction is not None or (own and line.name.startswith("Stream")):
                    yield Kernel(event.name, instruction, event.duration_ns)


def read_instructions(program: str) -> dict[str, bool]:
    """Return the instructions of a compiled program, and whether each contains a convolution.

    Instructions that only call others are left out, since those have their own kernels.
    """
    found: dict[str, bool] = {}
    computation, with_convolution = "", set()
    for line in program.splitlines():
        if start := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*{$", line):
            computation = start[1]
        elif part := re.match(r"\s+(?:ROOT )?%?([\w.-]+) = (?:\(.*?\)|\S+) ([\w-]+)\(", line):
            name, opcode = part.groups()
            target = re.search(r'custom_call_target="[^"]*conv', line, re.IGNORECASE)
            called = re.search(r"calls=%?([\w.-]+)", line)
            convolves = (
                opcode == "convolution"
                or target is not None
                or (called is not None and called[1] in with_convolution)
            )
            if convolves:
                with_convolution.add(computation)
            if opcode not in {"call", "while", "conditional"}:
                found[name] = convolves
    return found
