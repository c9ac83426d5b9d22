"""Benchmarks run; what they measure is not tested."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.train_step import read_instructions

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


@pytest.mark.slow
def test_train_step_measures_both_feeds_and_reads_the_profile(tmp_path):
    for name in ("blue", "red"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("RGB", (64, 48), name).save(tmp_path / "train" / name / "0.jpg")
    sizes = ["--batch=2", "--size=32", "--width=8", "--steps=2", "--rounds=2", "--workers=0"]
    paths = [f"--folder={tmp_path / 'train'}", f"--json={tmp_path / 'step.json'}"]
    subprocess.run(
        [sys.executable, "-m", "benchmarks.train_step", *sizes, *paths], cwd=REPOSITORY, check=True
    )
    report = json.loads((tmp_path / "step.json").read_text())
    for side in ("from device memory", "from the loader"):
        rates = report["images_per_second"][side]
        assert 0 < min(rates["rounds"]) <= rates["median"]
    assert 0 < report["kernels"]["share_outside_convolutions"] < 1
    assert report["kernels"]["seconds_per_step"] > 0


def test_instructions_with_a_convolution_are_found():
    program = """
HloModule jit_run
%inner (a: f32[4]) -> f32[4] {
  ROOT %convolution.1 = f32[4]{0} convolution(%a, %b), dim_labels=b01f_01io->b01f
}
%plain (a: f32[4]) -> f32[4] {
  ROOT %add.1 = f32[4]{0} add(%a, %a)
}
ENTRY %main (x: f32[4]) -> (f32[4], f32[4]) {
  %fusion.1 = f32[4]{0} fusion(%x), kind=kLoop, calls=%inner
  %fusion.2 = f32[4]{0:T(128)} fusion(%x), kind=kLoop, calls=%plain
  %conv.3 = (f32[4]{0}, u8[0]{0}) custom-call(%x), custom_call_target="__cudnn$convForward"
  %while.4 = (f32[4]{0}) while(%x), condition=%plain, body=%inner
  ROOT %tuple.5 = (f32[4]{0}, f32[4]{0}) tuple(%fusion.1, %fusion.2)
}
"""
    found = read_instructions(program)
    assert {name for name, convolves in found.items() if convolves} == {
        *("convolution.1", "fusion.1", "conv.3")
    }
    assert {name for name, convolves in found.items() if not convolves} == {
        *("add.1", "fusion.2", "tuple.5")
    }
