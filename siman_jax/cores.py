"""The processor's cores."""

import os


def usable_cores() -> list[int]:
    """Return the numbers of the cores that this process may use.

    They are fewer than the machine's where the process is bound to some, as by `taskset` or in a
    container. Where the system cannot tell, they are all.
    """
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
