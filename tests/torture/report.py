"""The page on campaigns that were added up."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_HEAD = """\
# Torture

Kills, damage, full disks and hostile input, tried on the product by `tests/torture/`, added up over
{runs} campaigns in the background. A finding is a crash, a hang, an exception that is not one clear
line, or a wrong result without a word. Numbers are in [torture.json](torture.json), with the
commits, commands and versions of each campaign.

| kind | cases | minutes | what happened | findings |
|------|------:|--------:|---------------|---------:|
"""


def write_report(
    path: Path, kinds: Mapping[str, Any], runs: Sequence[dict[str, Any]], notes: str = ""
) -> None:
    """Write the page.

    Args:
      path: of it.
      kinds: sums, by kind.
      runs: the campaigns.
      notes: Markdown to put at the end.
    """
    rows = [
        f"| {name} | {row['cases']:,} | {row['seconds'] / 60:.0f} | {_counts(row)} |"
        f" {len(row['findings'])} |"
        for name, row in kinds.items()
    ]
    commands = [
        f"- `{run['command']}` at `{run['commit']}`"
        for run in sorted(runs, key=lambda r: r["seed"])
    ]
    versions = ", ".join(f"{name} {version}" for name, version in runs[-1]["versions"].items())
    parts = [
        _HEAD.format(runs=len(runs)) + "\n".join(rows),
        "Campaigns:\n\n" + "\n".join(commands),
        f"Versions: {versions}.",
    ]
    path.write_text("\n\n".join([*parts, *([notes] if notes else [])]) + "\n")


def _counts(row: dict[str, Any]) -> str:
    if row["unavailable"]:
        return f"left out: {row['unavailable']}"
    return ", ".join(f"{number:,} {word}" for word, number in row["counts"].items())
