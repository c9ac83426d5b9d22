"""What trainings leave behind, to compare bit for bit."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .case import Finding
from .commands import fork, tail, wait

_MAY_DIFFER = {"images_per_second", "workers"}


def contents(workdir: Path, scratch: Path) -> dict[str, Any]:
    """All that a run, or a sweep of runs, keeps: log, config, and each leaf of each checkpoint."""
    answer, output = scratch / "contents.json", scratch / "contents.txt"
    answer.unlink(missing_ok=True)
    status = wait(fork(lambda: _write_contents(workdir, answer), output))
    if status:
        raise Finding(f"what it leaves cannot be read:\n{tail(output)}")
    return json.loads(answer.read_text())


def difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """The first thing that differs, "" where nothing does."""
    for name in sorted(found.keys() | expected.keys()):
        one, other = found.get(name), expected.get(name)
        if one != other:
            return f"{name}: {str(one)[:500]}\nundisturbed: {str(other)[:500]}"
    return ""


def _write_contents(folder: Path, answer: Path) -> None:
    import jax
    import numpy as np
    from orbax.checkpoint import v1 as ocp

    from siman_jax.runs.verify import verify_run

    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*.draft")):
        if (path.parent / "config.json").exists():  # a sweep locks nothing, so it removes nothing
            found[str(path.relative_to(folder))] = "left over"
    for path in sorted(folder.rglob("*.json*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".draft":
            continue
        if path.name == "log.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{k: v for k, v in row.items() if k not in _MAY_DIFFER} for row in rows]
        else:
            found[name] = _without_times(json.loads(path.read_text()))
    for checkpoints in sorted(folder.rglob("checkpoints")):
        workdir = checkpoints.parent
        damaged = [finding for finding in verify_run(workdir) if not finding.whole]
        assert not damaged, damaged
        for path in checkpoints.iterdir():
            name = str(path.relative_to(folder))
            if not path.name.isdecimal():
                found[name] = "left over"
                continue
            leaves = jax.tree_util.tree_leaves_with_path(ocp.load(path))
            found[name] = {
                jax.tree_util.keystr(place): [
                    str(leaf.dtype),
                    hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest(),
                ]
                for place, leaf in leaves
            }
            found[f"{name}/metrics"] = (path / "metrics" / "metrics").read_text()
    answer.write_text(json.dumps(found))


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k not in _MAY_DIFFER}
    return value
