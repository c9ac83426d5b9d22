"""Tries cases of one kind, in a process that may crash or hang: `pool` starts and watches it.

    python -m tests.torture.worker KIND SEED SCRATCH

Reads from standard input one line a case, a number or the path of a stored case. Writes a line of
JSON for each: {"word": "ok", "counts": {...}}, or "finding" or "unavailable" with a "text".
"""

import json
import os
import sys
import traceback
from pathlib import Path

from .case import Finding, Unavailable, random
from .kinds import load_kind


def main(name: str, seed: str, scratch: str) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the product prints is no answer
    try:
        kind = load_kind(name)(Path(scratch))
    except Unavailable as reason:
        print(json.dumps({"word": "unavailable", "text": str(reason)}), file=answers)
        return
    print(
        json.dumps({"word": "ready", "seconds": kind.seconds, "lifetime": kind.lifetime}),
        file=answers,
    )
    for line in sys.stdin:
        given = line.strip()
        if given.isdecimal():
            case = kind.make(random(name, int(seed), int(given)))
        else:
            case = Path(given).read_bytes()
        print(json.dumps(_tried(kind, case)), file=answers)


def _tried(kind, case: bytes) -> dict:
    try:
        return {"word": "ok", "counts": dict(kind.check(case))}
    except Unavailable as reason:
        return {"word": "unavailable", "text": str(reason)}
    except Finding as finding:
        return {"word": "finding", "text": str(finding)}
    except Exception:
        return {"word": "finding", "text": f"unclean exception: {traceback.format_exc()}"}


if __name__ == "__main__":
    main(*sys.argv[1:])
