"""Benchmarks run; what they measure is not tested."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image

from benchmarks.train_step import read_instructions
from configs import cifar10
from siman_jax.models import MODELS, build_model
from siman_jax.pytorch.names import variables_from_torch
from siman_jax.training.optimizer import build_optimizer
from siman_jax.training.step import TrainState, train_step

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
def test_training_writes_numbers_and_a_chart(tmp_path):
    # Not PyTorch's compiled side, which takes minutes to compile.
    xla, torch, network = "siman-jax (XLA only)", "PyTorch", "cifar.resnet20_1w1a"
    flags = ["--quick", "--threads=1", f"--networks={network}", f"--sides={xla},{torch}"]
    paths = [f"--json={tmp_path / 'training.json'}", f"--chart={tmp_path / 'training.png'}"]
    subprocess.run(
        [sys.executable, "-m", "benchmarks.training", *flags, *paths], cwd=REPOSITORY, check=True
    )
    report = json.loads((tmp_path / "training.json").read_text())
    left_out = report["left_out"][network]
    assert all(reason.startswith("not installed") for reason in left_out.values())
    assert {row["side"] for row in report["speed"]} == {xla, torch} - left_out.keys()
    assert xla not in left_out
    for row in report["speed"]:
        assert 0 < min(row["rounds"]) <= row["images_per_second"]
        assert 0 < row["imported_mb"] < row["peak_in_steps_mb"]
        assert row["seconds_to_first_step"] > 0
    assert report["speed"][0]["xla_temporaries_mb"] > 0
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"imagenet.resnet34_1w1a"}))
def test_the_step_in_pytorch_is_the_same(name):
    torch = pytest.importorskip("torch")
    from benchmarks.torch_training import Training, build_network

    classes, width, size, batch = 5, 8, 32, 4
    rng, _ = np.random.default_rng(0), torch.manual_seed(0)
    images, labels = rng.standard_normal((batch, size, size, 3)), rng.integers(0, classes, batch)
    network = build_network(name, classes, width, size).double()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.8, 1.2)  # so that binary convolutions count
            # An output of exactly 0 leaves a saturated shortcut at 1, where hardtanh has a corner.
            torch.nn.init.normal_(module.bias, 0, 0.1)

    def variables(arrays):
        arrays = {key: array.detach().numpy().copy() for key, array in arrays.items()}
        return variables_from_torch(name, arrays, size)

    before = variables(network.state_dict())
    rate, decay, percent = 0.1, 5e-4, 10.0
    training = Training(
        network,
        torch.from_numpy(images.transpose(0, 3, 1, 2)),
        torch.from_numpy(labels),
        learning_rate=rate,
        weight_decay=decay,
        percent=percent,
    )
    losses = [float(training.step()) for _ in range(2)]
    after = variables(network.state_dict())

    config = cifar10.get_config().optimizer
    config.weight_decay = decay
    optimizer = build_optimizer(config, rate)
    with jax.enable_x64(True):
        model = build_model(name, classes, width=width, dtype=jnp.float64)
        step = jax.jit(
            partial(
                train_step,
                model=model,
                optimizer=optimizer,
                clip_percent=lambda _: jnp.float64(percent),
            ),
            compiler_options={"xla_backend_optimization_level": 0},  # compiles faster
        )
        params, batch_stats = before["params"], before["batch_stats"]
        state = TrainState(jnp.int32(0), params, batch_stats, optimizer.init(params))
        for loss in losses:
            state, sums = step(state, jnp.asarray(images), jnp.asarray(labels, jnp.int32))
            np.testing.assert_allclose(sums.loss / batch, loss, rtol=1e-9)
    start, end, expected = map(flatten_dict, (before, after, jax.device_get(state.variables())))
    assert end.keys() == expected.keys()
    for path, array in end.items():
        error = np.abs(array - expected[path]).max()
        assert error < 1e-7 * np.abs(expected[path] - start[path]).max(), path


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
