"""Where a device's time goes in a compiled program, by a profile of its kernels."""

import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

# In names of cuDNN's kernels.
_CONVOLUTION = re.compile("conv|fprop|dgrad|wgrad|cudnn", re.IGNORECASE)


class Kernel(NamedTuple):
    """One run of a kernel.

    Attributes:
      name: as the profile has it.
      instruction: of the compiled program that it belongs to; None where that is not told.
      nanoseconds: it took.
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
      program: the compiled program's text.
      steps: that `run` takes.
      most: how many kernels to list.

    Returns:
      "seconds_per_step" of the program's kernels, those that run at the same time each for itself;
      the "share_outside_convolutions" of it, from 0 to 1; the "share_told", of all kernels' time,
      of those that are known to belong to the program, which alone count in both; and "longest",
      name, calls and milliseconds of a step of the kernels that take most. None where no kernel is
      known.
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
    """Whether a kernel is a convolution's; None where it may be another program's.

    Kernels of CUDA graphs come without an instruction: XLA's own are called like it, and cuDNN's by
    what they do.
    """
    by_kernel = {re.sub(r"\W", "_", name): known for name, known in instructions.items()}

    def convolves(kernel: Kernel) -> bool | None:
        known = instructions.get(kernel.instruction or "", by_kernel.get(kernel.name))
        if known is None and kernel.instruction is None and _CONVOLUTION.search(kernel.name):
            return True
        return known

    return convolves


def read_kernels(path: Path) -> Iterator[Kernel]:
    """Kernels in a profile, of whatever program."""
    warnings.filterwarnings("ignore", "builtin type", DeprecationWarning)  # about JAX's own types
    planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
    # An accelerator has a plane of its own; the host's then holds only what dispatches.
    own = [plane for plane in planes if plane.name.startswith("/device:")]
    for plane in own or planes:
        for line in plane.lines:
            for event in line.events:
                instruction = dict(event.stats).get("hlo_op")
                if instruction is None and line.name == "XLA Ops":  # a TPU's
                    instruction = event.name.removeprefix("%").partition(" ")[0]
                # A GPU's streams hold kernels; other lines of a device sum up or mark time.
                if instruction is not None or (own and line.name.startswith("Stream")):
                    yield Kernel(event.name, instruction, event.duration_ns)


def read_instructions(program: str) -> dict[str, bool]:
    """Names of the instructions of a compiled program, and whether each holds a convolution.

    Those that only call others, which have kernels of their own, are left out.
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
