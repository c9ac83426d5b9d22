"""Tests that benchmarks run; their measurements are not tested."""

import argparse
import json
import re
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

from benchmarks import accelerator, engines, kernel_profile
from benchmarks.case import Case
from benchmarks.origin import origin
from siman_jax.configs import cifar10
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
    # The user did not say which interpreter has it.
    assert report["left_out"][network][missing].startswith("not installed")
    assert (tmp_path / f"{network}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_loading_writes_numbers(tmp_path):
    ours, other = "siman-jax packed", "ONNX Runtime float"
    flags = [f"--engines={ours},{other}", "--rounds=2", "--calls=20", f"--out={tmp_path}"]
    subprocess.run([sys.executable, "-m", "benchmarks.loading", *flags], cwd=REPOSITORY, check=True)
    report = json.loads((tmp_path / "loading.json").read_text())
    assert all(reason.startswith("not installed") for reason in report["left_out"].values())
    assert [row["engine"] for row in report["rows"]] == [
        name for name in (ours, other) if name not in report["left_out"]
    ]
    row = report["rows"][0]
    assert row["engine"] == ours
    assert 0 < row["seconds_to_first_prediction"] < row["seconds_of_process"]
    assert row["megabytes_beyond_numpy"] < 30
    assert len(row["seconds_of_rounds"]) == 2
    assert len(row["megabytes_after_tenths"]) == 10


@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"imagenet.resnet34_1w1a"}))
def test_openvino_computes_the_same(name, tmp_path):
    pytest.importorskip("openvino")
    case = Case(name, 32, 5, 8)
    engines.prepare_packed(case, tmp_path)
    for fixed in (False, True):
        engines.prepare_openvino_binary(case, tmp_path, fixed=fixed)  # compares the logits
    assert (tmp_path / engines.OPENVINO_BINARY_FILE).exists()


@pytest.mark.slow
def test_training_writes_numbers_and_a_chart(tmp_path):
    # Without PyTorch's compiled side, which takes minutes to compile.
    xla, torch, network = "siman-jax (XLA only)", "PyTorch", "cifar.resnet20_1w1a"
    flags = ["--quick", "--threads=1", f"--networks={network}", f"--sides={xla},{torch}"]
    # This checkout may be without the native library, which the step before needs.
    flags.append(f"--before={REPOSITORY}")
    paths = [f"--json={tmp_path / 'training.json'}", f"--chart={tmp_path / 'training.png'}"]
    subprocess.run(
        [sys.executable, "-m", "benchmarks.training", *flags, *paths], cwd=REPOSITORY, check=True
    )
    report = json.loads((tmp_path / "training.json").read_text())
    left_out = report["left_out"][network]
    assert all(reason.startswith("not installed") for reason in left_out.values())
    sides = {xla, torch, "siman-jax (before)"}
    assert {row["side"] for row in report["speed"]} == sides - left_out.keys()
    assert report["commit_before"] == report["commit"]
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
            torch.nn.init.uniform_(module.weight, 0.8, 1.2)  # so that binary convolutions matter
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
                schedules={"clip_percent": lambda _: jnp.float64(percent)},
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


def pictures(folder, size, count):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(folder / f"{index}.jpg")


@pytest.mark.slow
def test_accelerator_runs_every_part(tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    pictures(data / "photographs", (90, 120, 3), 2)
    for split in ("train", "test"):
        for name in ("blue", "red"):
            pictures(data / "cifar10" / split / name, (32, 32, 3), 4)
    flags = ["--quick", "--minutes=8", f"--data={data}", f"--out={out}"]
    command = [sys.executable, "-m", "benchmarks.accelerator", *flags]
    printed = subprocess.run(
        command, cwd=REPOSITORY, check=True, capture_output=True, text=True
    ).stdout
    parts = json.loads((out / "summary.json").read_text())["parts"]
    torch = parts["torch_steps"].pop("left_out", {})
    assert all("No module named 'torch'" in reason for reason in torch.values())
    assert {name: part["left_out"] for name, part in parts.items() if "left_out" in part} == {}

    checks = parts["checks"]["checks"]
    assert all(checks[name]["passed"] for name in ("sums of bits", "bits", "gradients"))
    assert checks["losses"]["device"] == checks["losses"]["cpu"]  # the device here is the CPU
    assert checks["losses"]["device"][-1] < checks["losses"]["device"][0]
    programs = parts["steps"]["programs"]
    assert len(programs) == 3
    for row in programs.values():
        assert 0 < min(row["rounds"]) <= row["images_per_second"]
    kernels = programs["imagenet.resnet18, batch 256, bfloat16"]["kernels"]
    assert 0 < kernels["share_outside_convolutions"] < 1
    assert len(parts["packed"]["calls"]) == 4
    assert min(row["images_per_second"] for row in parts["decoding"]["processes"].values()) > 0
    run = parts["training_run"]
    assert (run["epochs_before"], run["epochs"]) == (0, 1)

    files = list(out.iterdir())
    names = {f"{part.name}.json" for part in accelerator.PARTS} | {"summary.json", "run.tar.gz"}
    assert {file.name for file in files} <= names
    assert len(names) <= 8
    assert max(file.stat().st_size for file in files) < 16e6
    lines = printed.splitlines()
    assert any(line.startswith("gradients: passed") for line in lines)
    assert any(line.startswith("the run of ResNet-20 has taken 1 epochs, 0 of") for line in lines)
    # The run continues from its file in either folder; here it is already finished.
    (out / "run.tar.gz").rename(data / "run.tar.gz")
    (tmp_path / "next").mkdir()
    again = accelerator.run_part("training_run", 200, namespace(tmp_path / "next", data))
    assert (again["epochs_before"], again["epochs"]) == (1, 1)
    assert (tmp_path / "next" / "run.tar.gz").exists()


def namespace(out, data):
    return argparse.Namespace(out=out, data=data, quick=True)


def test_accelerator_names_what_a_part_lacks(tmp_path):
    result = accelerator.run_part("decoding", 60, namespace(tmp_path, None))
    assert result["left_out"] == {"decoding": "there are no JPEG files in a folder of data"}
    assert json.loads((tmp_path / "decoding.json").read_text())["left_out"] == result["left_out"]


def test_accelerator_ends_a_part_when_its_time_is_over(tmp_path, monkeypatch):
    assert (
        "no time"
        in accelerator.run_part("checks", 5, namespace(tmp_path, None))["left_out"]["checks"]
    )
    monkeypatch.setattr(accelerator, "LEAST_SECONDS", 0)
    monkeypatch.setattr(accelerator, "GRACE_SECONDS", 0)
    result = accelerator.run_part("checks", 0.5, namespace(tmp_path, None))
    assert "was ended" in result["left_out"]["the rest of checks"]
    assert result["seconds"] < 30


def test_the_origin_of_numbers(monkeypatch):
    monkeypatch.setattr("sys.argv", ["training.py", "--rounds=2"])
    made = origin("training")
    assert list(made) == ["command", "commit", "date", "machine"]
    assert made["command"] == "python -m benchmarks.training --rounds=2"
    assert made["commit"] is None or re.fullmatch(r"[0-9a-f]{40}\+?", made["commit"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", made["date"])
    assert made["machine"]["cores"] > 0


def test_kernels_are_told_by_instruction_or_name():
    instructions = {"loop_add-fusion.3": False, "conv.1": True, "cudnn-conv": True}
    convolves = kernel_profile.classifier(instructions)
    told = [
        convolves(kernel_profile.Kernel(name, instruction, 1.0))
        for name, instruction in (
            ("anything", "conv.1"),
            ("loop_add_fusion_3", None),  # as in a CUDA graph
            ("sm90_xmma_fprop_implicit_gemm", None),
            ("memcpy", None),
            ("conv_of_another_program", "conv.9"),
        )
    ]
    assert told == [True, False, True, None, None]


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
    found = kernel_profile.read_instructions(program)
    assert {name for name, convolves in found.items() if convolves} == {
        *("convolution.1", "fusion.1", "conv.3")
    }
    assert {name for name, convolves in found.items() if not convolves} == {
        *("add.1", "fusion.2", "tuple.5")
    }
