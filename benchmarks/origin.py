"""Tells where numbers come from: the command, the commit, the day and the machine."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# Instruction sets that matter for popcounts, and for int8 and bfloat16 products.
TELLING_FLAGS = (
    "popcnt",
    "avx2",
    "avx512f",
    "avx512bw",
    "avx512_bitalg",
    "avx512_vpopcntdq",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
)


def origin(benchmark: str) -> dict[str, Any]:
    """Tell where the numbers of a benchmark come from, for the top of its JSON file.

    Args:
      benchmark: name of its module in this folder.

    Returns:
      Values for JSON by the keys "command", "commit", "date" (such as 2026-11-30) and "machine".
    """
    return {
        "command": " ".join([f"python -m benchmarks.{benchmark}", *sys.argv[1:]]),
        "commit": commit(Path(__file__).parent.parent),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe(),
    }


def commit(folder: Path) -> str | None:
    """Return the hash of the commit in a checkout, with a plus if files have changed."""
    try:
        run = [
            subprocess.run(
                ["git", *command], cwd=folder, capture_output=True, text=True, check=True
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return run[0] + "+" * bool(run[1])


def describe() -> dict[str, Any]:
    """Describe the machine by `lscpu`, and its load."""
    try:
        text = subprocess.run(
            ["lscpu"], capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"}
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        text = ""
    parts = (line.partition(":") for line in text.splitlines())
    fields = {name.strip(): value.strip() for name, _, value in parts}
    flags = set(fields.get("Flags", fields.get("Features", "")).split())
    return {
        "cpu": fields.get("Model name", platform.processor()),
        "family_model_stepping": [fields.get(n) for n in ("CPU family", "Model", "Stepping")],
        "cores": os.cpu_count(),
        "threads_per_core": fields.get("Thread(s) per core"),
        "caches": {name: value for name, value in fields.items() if name.endswith("cache")},
        "hypervisor": fields.get("Hypervisor vendor"),
        "flags": [flag for flag in TELLING_FLAGS if flag in flags],
        "system": platform.platform(),
        "load_average_at_start": os.getloadavg() if hasattr(os, "getloadavg") else None,
    }
