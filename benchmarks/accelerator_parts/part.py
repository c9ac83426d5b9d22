"""What the parts of `benchmarks.accelerator` share: their command line, and the file each writes.

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
      out: file that results go to.
      data: folder of data, None where there is none.
      seconds: that the part may take.
      quick: whether to do everything in small.
    """

    def __init__(self, out: Path, data: Path | None, seconds: float, quick: bool) -> None:
        self.out, self.data, self.quick = out, data, quick
        self._end = time.monotonic() + seconds
        self._results: dict[str, Any] = {}

    @property
    def seconds_left(self) -> float:
        """Until the part has to end; below 0 behind that."""
        return self._end - time.monotonic()

    def write(self, **results: Any) -> None:
        """Add to the results, or replace some, and write all of them."""
        self._results |= results
        write_whole(self.out, (json.dumps(self._results, indent=1) + "\n").encode())

    def add(self, table: str, name: str, row: Any) -> None:
        """Add a named row to a table among the results."""
        self.write(**{table: {**self._results.get(table, {}), name: row}})

    def leave_out(self, name: str, reason: object) -> None:
        """Say what is not measured, and why."""
        self.add("left_out", name, str(reason)[:500])


def run(main: Callable[[Part], None]) -> NoReturn:
    """Run a part as its command line says, and end the process, whatever still runs in threads."""
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
    """The accelerator, and versions."""
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
    """The most memory that the device has held in this process; None where it does not tell."""
    import jax

    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
