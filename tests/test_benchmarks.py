"""Benchmarks run; what they measure is not tested."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


@pytest.mark.slow
def test_packed_inference_writes_numbers_and_a_chart(tmp_path):
    ours, missing, network = "siman-jax packed", "Larq Compute Engine", "cifar.resnet20_1w1a"
    flags = ["--quick", "--threads=1", "--batch_sizes=1", f"--network={network}"]
    named = [f"--engines={ours},{missing}", f"--out={tmp_path}"]
    subprocess.run(
        [sys.executable, "-m", "benchmarks.packed_inference", *flags, *named],
        cwd=REPOSITORY,
        check=True,
    )
    report = json.loads((tmp_path / "packed_inference.json").read_text())
    (row,) = report["speed"]
    assert (row["engine"], row["batch"], row["times_ours"]) == (ours, 1, 1)
    assert 0 < row["best_ms"] <= row["median_ms"]
    assert row["n"] > 1
    assert [row["engine"] for row in report["memory"]] == [ours]
    assert report["layers"][0]["layers"][0]["gmacs"] > 0
    # Which interpreter has it is for the user to say.
    assert report["left_out"][network][missing].startswith("not installed")
    assert (tmp_path / f"{network}.png").read_bytes().startswith(b"\x89PNG")
