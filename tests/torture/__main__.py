"""Command line: a campaign, or the sum of several.

    python -m tests.torture --minutes=10 --seed=1 --json=torture-1.json
    python -m tests.torture --add-up torture-*.json --json=sum.json

Exit status: 0; 1, something was found.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from .campaign import FINDINGS, add_up, print_kind, run_campaign, write_json
from .kinds import KINDS
from .report import write_report

_NOTES = Path(__file__).parent / "found.md"


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.torture", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="for all kinds together")
    parser.add_argument("--seed", type=int, default=0, help="another one gives other cases")
    parser.add_argument("--only", default="", help=f"some of {','.join(KINDS)}")
    parser.add_argument("--cases", type=int, default=0, help="most of a kind; 0: what time allows")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--keep", type=Path, default=FINDINGS, help="folder for what finds a fault")
    parser.add_argument("--add-up", type=Path, nargs="+", help="results, or sums, to add up")
    parser.add_argument("--report", type=Path, help="page to write of them")
    flags = parser.parse_args()
    if flags.add_up:
        campaigns = [json.loads(path.read_text()) for path in sorted(flags.add_up)]
        kinds = add_up(campaigns)
        # A sum, which is added to, names its own campaigns.
        runs = [run for campaign in campaigns for run in campaign.get("runs", [campaign])]
        for name, row in kinds.items():
            print_kind(name, row)
        if flags.json:
            head = [{key: run[key] for key in run if key != "kinds"} for run in runs]
            write_json(flags.json, {"kinds": kinds, "runs": head})
        if flags.report:
            write_report(flags.report, kinds, runs, _NOTES.read_text() if _NOTES.exists() else "")
        return any(row["findings"] for row in kinds.values())
    only = [name for name in flags.only.split(",") if name]
    for name in only:
        if name not in KINDS:
            parser.error(f"unknown kind {name!r}; choose of {', '.join(KINDS)}")

    def save(run: dict[str, Any]) -> None:
        if flags.json:
            write_json(flags.json, run)

    run = run_campaign(flags.minutes, only, flags.seed, flags.cases, flags.keep, save)
    return any(row["findings"] for row in run["kinds"].values())


if __name__ == "__main__":
    sys.exit(main())
