"""Benchmarks run; what they measure is not tested."""

import json
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent


def test_packed_inference_writes_numbers_and_a_chart(tmp_path):
    engines = ["siman-jax packed", "siman-jax float twin"]
    flags = ["--quick", "--threads=1", "--network=cifar.resnet20_1w1a", "--batch_sizes=1,2"]
    named = f"--engines={','.join([*engines, 'Larq Compute Engine'])}"
    subprocess.run(
        [sys.executable, "-m", "benchmarks.packed_inference", *flags, named, f"--out={tmp_path}"],
        cwd=REPOSITORY,
        check=True,
    )
    report = json.loads((tmp_path / "packed_inference.json").read_text())
    assert [(row["batch"], row["engine"]) for row in report["speed"]] == [
        (batch, engine) for batch in (1, 2) for engine in engines
    ]
    assert all(row["best_ms"] <= row["median_ms"] and row["n"] > 1 for row in report["speed"])
    assert [row["times_ours"] for row in report["speed"] if row["engine"] == engines[0]] == [1, 1]
    assert [row["engine"] for row in report["memory"]] == engines
    assert report["layers"][0]["layers"]
    # Which interpreter has it is for the user to say.
    assert report["left_out"]["Larq Compute Engine"].startswith("not installed")
    assert (tmp_path / "cifar.resnet20_1w1a.png").read_bytes().startswith(b"\x89PNG")
