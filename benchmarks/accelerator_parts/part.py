"""The common code of the parts of `benchmarks.accelerator`: command line and output file.

python -m benchmarks.accelerator_parts.NAME --out=FILE --seconds=N [--data=FOLDER] [--quick]
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from siman_jax.output import write_whole


class Part:
    """One part of a run, in a process of its own.

    Args:
      out: file for the results.
      data: folder of data; None if there is none.
      seconds: how long the part may take.
      quick: whether to run everything in small.
    """

    def __init__(self, out: Path, data: Path | None, seconds: float, quick: bool) -> None:
        self.out, self.data, self.quick = out, data, quick
        self._end = time.monotonic() + seconds
        self._results: dict[str, Any] = {}

    @property
    def seconds_left(self) -> float:
        """Seconds until the part has to end; negative after that."""
        return self._end - time.monotonic()

    def write(self, **results: Any) -> None:
        """Add or replace results, and write all of them."""
        self._results |= results
        write_whole(self.out, (json.dumps(self._results, indent=1) + "\n").encode())

    def add(self, table: str, name: str, row: Any) -> None:
        """Add a named row to a table among the results."""
        self.write(**{table: {**self._results.get(table, {}), name: row}})

    def leave_out(self, name: str, reason: object) -> None:
        """Record that something is not measured, and why."""
        self.add("left_out", name, str(reason)[:500])


def run(main: Callable[[Part], None]) -> NoReturn:
    """Run a part by its command line, then end the process, even if threads are still running."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    main(Part(args.out, args.data, args.seconds, args.quick))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def describe_device() -> dict[str, Any]:
    """Describe the accelerator, with versions of JAX and Flax."""
    import flax
    import jax

    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "runtime": device.client.platform_version.splitlines()[0],
        "versions": {"jax": jax.__version__, "flax": flax.__version__},
    }


def peak_bytes() -> int | None:
    """Return the peak memory of the device in this process; None if it is unknown."""
    import jax

    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
