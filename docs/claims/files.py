"""Reads the files in results/, and tells where their numbers come from."""

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).parents[2]
RESULTS = REPOSITORY / "results"
# What says where logs come from; other files say it themselves.
MADE = "made.json"


class Origin(NamedTuple):
    """Where the numbers of a file come from, as text; "not kept" is what a file does not say."""

    command: str
    commit: str
    machine: str
    date: str


@cache
def read(path: str) -> Any:
    """Read a JSON file of results/."""
    return json.loads((RESULTS / path).read_text())


@cache
def read_log(path: str) -> list[dict[str, Any]]:
    """Read the rows of a log in results/."""
    return [json.loads(line) for line in (RESULTS / path).read_text().splitlines()]


def origins(path: str) -> list[Origin]:
    """Tell where a file's numbers come from: one origin for each run of a benchmark in it."""
    made = f"{path.partition('/')[0]}/{MADE}"
    report = read(made if (RESULTS / made).is_file() else path)
    return [
        Origin(
            run.get("command", "not kept"),
            _commit(run.get("commit")),
            _machine(run.get("machine")),
            run["date"],
        )
        for run in report.get("runs", [report])
    ]


def _commit(commits: str | None) -> str:
    if commits is None:
        return "not kept"
    return ", ".join(commit.rstrip("+")[:7] for commit in commits.split(", "))


def _machine(machine: Any) -> str:
    if not isinstance(machine, dict):
        return machine or "not kept"
    family, model, _ = machine["family_model_stepping"]
    flags = machine["flags"]
    sets = [
        name
        for flag, name in (("avx2", "AVX2"), ("avx512f", "AVX-512"), ("amx_int8", "AMX"))
        if flag in flags
    ]
    cpu = machine["cpu"].replace("(R)", "").replace(" Processor", "")
    kind = f"{cpu}, family {family}, model {model}"
    return f"{machine['cores']} cores of an {kind}, with {', '.join(sets)}"
