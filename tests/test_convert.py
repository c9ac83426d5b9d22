"""Tests of converting the authors' checkpoints: formats, logits by stored bits, refusals."""

import json
import os
import sys
import threading
from functools import cache

import fake_torch
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cli import call, run
from golden_data import NETWORKS, load_golden
from own_networks import branches
from parameters import first_quickly

import siman_jax
from siman_jax import convert, models
from siman_jax.configs import cifar10, cifar100, imagenet
from siman_jax.devices.mesh import make_mesh
from siman_jax.errors import UsageError
from siman_jax.models.images import CIFAR10, IMAGENET, Images, default_images
from siman_jax.models.leaves import BITS
from siman_jax.program.interpret import interpret
from siman_jax.pytorch.bits import stored_bits
from siman_jax.pytorch.checkpoint import find_state, read_state
from siman_jax.pytorch.names import variables_from_torch
from siman_jax.rules import WEIGHT_RULES
from siman_jax.runs.stored_run import load_run
from siman_jax.runs.workdir import read_config

NAME = "cifar.resnet20_1w1a"


# ml_collections loads a config's file by what Python 3.11 calls deprecated.
reads_configs = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@cache
def golden(name="resnet20"):
    return load_golden(name)


def state(name="resnet20", prefix=""):
    return {prefix + key: np.asarray(array) for key, array in golden(name).arrays.items()}


def assert_golden_logits(model, name):
    """Compare logits of the golden images, which are already normalized."""
    logits = jax.jit(interpret)(model.network.program, jnp.float32(golden(name).images))
    expected = golden(name).results["eval_logits"]
    error = np.max(np.abs(logits - expected)) / np.max(np.abs(expected))
    assert error < 1e-5


@pytest.fixture
def without_torch(monkeypatch):
    """Read files of NumPy in place of PyTorch's."""
    fake_torch.install(monkeypatch, lambda file: {"state_dict": dict(np.load(file))})


def saved(folder, arrays):
    np.savez(folder / "checkpoint.npz", **arrays)
    return folder / "checkpoint.npz"


@pytest.mark.parametrize("name", first_quickly(NETWORKS))
def test_logits_of_the_authors(without_torch, name, tmp_path, capsys):
    path = saved(tmp_path, state(name, "module."))
    out = tmp_path / "model.safetensors"
    call(convert.main, path, f"--model={NETWORKS[name]}", f"--out={out}", "--table")
    assert_golden_logits(siman_jax.load(out), name)
    printed = capsys.readouterr()
    assert "bits/" in printed.out
    assert "not needed" in printed.out
    assert "arrays of state_dict converted" in printed.out
    # The bits were drawn at random, so half of them differ from those of the weights.
    assert (
        "% of the bits in B differ from those of the latent weights (expected at most 1 %)"
        in printed.err
    )
    assert "neither 0 nor 1" not in printed.err


def test_what_stands_in_the_notes(without_torch, tmp_path):
    path, out = saved(tmp_path, state()), tmp_path / "model.safetensors"
    names = [f"class {index}" for index in range(10)]
    (tmp_path / "classes").write_text("\n".join(names) + "\n")
    call(convert.main, path, f"--model={NAME}", f"--out={out}", f"--classes={tmp_path / 'classes'}")
    notes = siman_jax.load(out).notes
    assert notes.class_names == tuple(names)
    assert (notes.mean, notes.std) == (CIFAR10.mean, CIFAR10.std)
    assert notes.shorter_side is None
    assert not notes.resize


def test_notes_that_do_not_fit_are_refused(without_torch, tmp_path):
    path, out = saved(tmp_path, state()), f"--out={tmp_path / 'out'}"
    (tmp_path / "classes").write_text("cat\ndog\n")
    for flag, message in (
        ("--mean=0.5", "do not fit the model: its mean"),
        ("--std=0.5,0,0.5", "expected numbers above 0"),
        ("--std=0.5,x,0.5", "--std=0.5,x,0.5 is not a list of numbers"),
        (f"--classes={tmp_path / 'classes'}", "2 class_names for 10 classes"),
    ):
        with pytest.raises(UsageError, match=message):
            call(convert.main, path, f"--model={NAME}", out, flag)
    assert not (tmp_path / "out").exists()


def test_images_by_default_are_those_of_the_configs():
    configs = [
        *(module.get_config(name) for module in (cifar10, cifar100) for name in cifar10.WIDTHS),
        *(imagenet.get_config(name) for name in imagenet.NETWORKS),
    ]
    assert {config.model.name for config in configs} == models.NETWORKS.keys()
    for config in configs:
        data = config.data
        side = None if data.resident else data.shorter_side
        found = default_images(models.NETWORKS[config.model.name], data.num_classes)
        assert found == Images(data.image_size, data.mean, data.std, side)


def test_images_of_another_size(without_torch, tmp_path):
    """The classifier of a ResNet takes any; evaluation of ImageNet's scales and crops in step."""
    path, out = saved(tmp_path, state("resnet18_imagenet")), tmp_path / "model.safetensors"
    flags = ("--model=imagenet.resnet18_1w1a", f"--out={out}", "--image_size=112", "--std=1,1,1")
    call(convert.main, path, *flags)
    model = siman_jax.load(out)
    assert model.network.image_shape == (112, 112, 3)
    notes = model.notes
    assert (notes.mean, notes.std, notes.shorter_side) == (IMAGENET.mean, (1, 1, 1), 128)


def test_a_network_that_does_not_tell_its_images():
    with pytest.raises(UsageError, match="branches does not tell the size and normalization"):
        default_images(branches, 10)


def test_everything_that_does_not_fit_is_listed(without_torch, tmp_path):
    arrays = state()
    del arrays["bn1.bias"], arrays["layer1.0.conv1.alpha"]
    arrays["extra.weight"] = np.zeros(3)
    arrays["linear.bias"] = np.zeros(11)
    arrays["layer2.0.conv1.B"] = arrays["layer2.0.conv1.B"][..., 1:]
    with pytest.raises(UsageError, match="cannot be converted") as error:
        call(convert.main, saved(tmp_path, arrays), f"--model={NAME}", f"--out={tmp_path / 'out'}")
    for line in (
        "bn1/bias (by its name here) is missing",
        "layer1_0/conv1/alpha (by its name here) is missing",
        "extra.weight is left over",
        "linear.bias has shape [11], not [10]",
        "layer2.0.conv1.B has shape [32, 1, 143], not [32, 16, 3, 3] or [32, 1, 144] or [32, 144]",
    ):
        assert line in str(error.value)
    assert not (tmp_path / "out").exists()


def test_every_binary_layer_needs_its_bits():
    arrays = state()
    del arrays["layer1.0.conv1.B"], arrays["layer3.2.conv2.B"]
    with pytest.raises(UsageError, match=r"no bits B:\n  layer1_0/conv1\n  layer3_2/conv2$"):
        stored_bits(variables_from_torch(NAME, arrays), "half_half")


def test_other_networks_are_refused():
    for arrays in (state("vgg_small"), {"a": np.zeros(1)}, state("resnet18_imagenet")):
        with pytest.raises(UsageError, match=r"these arrays (are not|hold no stem)"):
            variables_from_torch(NAME, arrays)
    twice = state() | {"fc.bias": np.zeros(10)}
    with pytest.raises(UsageError, match=r"fc.bias and linear.bias have the same place here"):
        variables_from_torch(NAME, twice)


def with_own_bits(change=lambda bits: bits):
    """Return golden variables with some bits of their latent weights changed."""
    variables = variables_from_torch(NAME, state())
    rule = WEIGHT_RULES["half_half"]
    for block, layers in variables[BITS].items():
        for layer in layers:
            kernel = jnp.float32(variables["params"][block][layer]["binary_kernel"])
            bits = np.asarray(rule(kernel, {}) > 0).astype(np.float32)
            layers[layer] = {"binary_kernel": change(bits)}
    return variables


def flipped(share):
    def change(bits):
        every = round(1 / share)
        return np.where(np.arange(bits.size).reshape(bits.shape) % every == 0, 1 - bits, bits)

    return change


def test_warnings_state_the_share():
    assert stored_bits(with_own_bits(), "half_half")[1] == []
    assert stored_bits(with_own_bits(flipped(0.005)), "half_half")[1] == []
    (warning,) = stored_bits(with_own_bits(flipped(0.02)), "half_half")[1]
    assert warning.startswith("2.01 % of the bits in B differ from those of the latent weights")
    bits, (warning,) = stored_bits(with_own_bits(lambda bits: 2 * bits - 1), "half_half")
    assert warning.startswith("50 % of B is neither 0 nor 1; values above 0 were taken as 1")
    expected, _ = stored_bits(with_own_bits(), "half_half")
    np.testing.assert_array_equal(
        bits["layer1_0"]["conv1"]["binary_kernel"], expected["layer1_0"]["conv1"]["binary_kernel"]
    )


@reads_configs
def test_a_run_to_train_on(without_torch, tmp_path):
    workdir = tmp_path / "run"
    path = saved(tmp_path, state())
    config = [f"--workdir={workdir}"]
    call(convert.main, path, f"--model={NAME}", f"--out={tmp_path / 'model'}", *config)
    progress = load_run(read_config(workdir), workdir, make_mesh(1)).progress
    assert int(progress.state.step) == 0
    kernel = golden().arrays["layer1.0.conv1.weight"].transpose(2, 3, 1, 0)
    found = progress.state.params["layer1_0"]["conv1"]["binary_kernel"]
    np.testing.assert_array_equal(found, np.float32(kernel))
    with pytest.raises(UsageError, match="is not empty; name a new folder"):
        call(convert.main, path, f"--model={NAME}", f"--out={tmp_path / 'other'}", *config)


@reads_configs
def test_what_is_wrong_is_said_before_any_work(tmp_path, monkeypatch):
    path, out = saved(tmp_path, {"a": np.zeros(1)}), f"--out={tmp_path / 'out'}"
    model, config = f"--model={NAME}", "--config=configs/cifar10.py:resnet18"
    workdir = f"--workdir={tmp_path / 'run'}"
    wrong = {
        "name one checkpoint": [out, model],
        "--model and --out are missing": [path, out],
        "did you mean 'cifar.resnet20_1w1a'": [path, out, "--model=cifar.resnet20"],
        "--config needs a run": [path, out, model, config],
        "--config is for cifar.resnet18_1w1a": [path, out, model, config, workdir],
        "come from the config": [path, out, model, config, workdir, "--image_size=64"],
        "--classes=.* cannot be read": [path, out, model, f"--classes={tmp_path}"],
        "there is no file": [tmp_path / "no", out, model],
        "exists": [path, f"--out={path}", model],
    }
    for message, arguments in wrong.items():
        with pytest.raises(UsageError, match=message):
            call(convert.main, *arguments)
    monkeypatch.setattr("siman_jax.pytorch.checkpoint.importlib.util.find_spec", lambda _: None)
    with pytest.raises(
        UsageError, match=r"needs PyTorch; install it with\n  pip install 'siman-jax\[torch\]'"
    ):
        call(convert.main, path, out, model)
    assert not (tmp_path / "out").exists()


def test_what_holds_no_state_is_refused(tmp_path):
    for content in ([], {}, {"state_dict": None}, {"state_dict": {}}, {"model": "resnet20"}):
        with pytest.raises(UsageError, match="holds no state_dict"):
            find_state(content, tmp_path)
    with pytest.raises(UsageError, match="not tensors: lr"):
        find_state({"state_dict": {"w": np.zeros(1), "lr": 0.1}}, tmp_path)
    with pytest.raises(UsageError, match=r"no entry 'ema' with tensors; it has net"):
        find_state({"net": {"w": np.zeros(1)}}, tmp_path, "ema")
    # Only a prefix of all names is removed.
    found = find_state({"module.a": np.zeros(1), "b": np.zeros(1)}, tmp_path)
    assert found.arrays.keys() == {"module.a", "b"}


@pytest.mark.parametrize("entry", ["state_dict", "model_state_dict", "model", "net", ""])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_usual_places_of_weights(tmp_path, entry, prefix):
    weights = {f"{prefix}conv1.weight": np.zeros(1), f"{prefix}fc.bias": np.zeros(2)}
    found = find_state({entry: weights, "epoch": 3} if entry else weights, tmp_path)
    assert found.arrays.keys() == {"conv1.weight", "fc.bias"}
    assert (found.entry, found.averaged) == (entry, ())


def test_averaged_weights_are_told_of_and_taken_by_their_name(tmp_path, capsys, monkeypatch):
    entries = {"schema": {"a": np.zeros(1)}, "model": state(), "model_ema": state(prefix="module.")}
    found = find_state(entries, tmp_path)
    assert (found.entry, found.averaged) == ("model", ("model_ema",))
    found = find_state(entries, tmp_path, "model_ema")
    assert (found.entry, found.averaged) == ("model_ema", ())
    assert found.arrays.keys() == state().keys()
    fake_torch.install(monkeypatch, lambda _: entries)
    (tmp_path / "model.pth").touch()
    call(convert.main, tmp_path / "model.pth", f"--model={NAME}", f"--out={tmp_path / 'out'}")
    printed = capsys.readouterr()
    assert (
        "also holds averaged weights (EMA), in model_ema; those in model were converted"
        in printed.err
    )
    assert "bits/" not in printed.out  # the table is printed only on request
    assert "arrays of model converted" in printed.out


class WithTorch:
    """Tests with files that PyTorch itself wrote."""

    @pytest.fixture(autouse=True)
    def torch(self):
        return pytest.importorskip("torch")

    def save(self, torch, path, arrays, **options):
        """A checkpoint of the authors' training program."""
        schedule = {"last_epoch": 3, "lr": np.float64(0.1)}
        torch.save(
            {
                "epoch": 3,
                "model": "resnet20_1w1a",
                "state_dict": {name: torch.tensor(array) for name, array in arrays.items()},
                "best_prec1": torch.tensor(85.0),
                "parameters": [torch.nn.Parameter(torch.zeros(2))],
                "optimizer": {"state": {}, "param_groups": [schedule]},
                "lr_scheduler": schedule,
            },
            path,
            **options,
        )


class TestFormats(WithTorch):
    @pytest.mark.parametrize("prefix", ["", "module."])
    @pytest.mark.parametrize("zipped", [True, False])
    def test_logits(self, torch, tmp_path, zipped, prefix):
        path, out = tmp_path / "model_best.pth.tar", tmp_path / "model.safetensors"
        self.save(torch, path, state(prefix=prefix), _use_new_zipfile_serialization=zipped)
        call(convert.main, path, f"--model={NAME}", f"--out={out}")
        assert_golden_logits(siman_jax.load(out), "resnet20")

    def test_a_state_alone_and_bfloat16(self, torch, tmp_path):
        tensors = {"a": torch.ones(2, dtype=torch.bfloat16), "n": torch.tensor(3)}
        torch.save(tensors, tmp_path / "state")
        arrays = read_state(tmp_path / "state").arrays
        assert arrays["a"].dtype == np.float32
        assert arrays["n"] == 3

    def test_a_pipe(self, torch, tmp_path):
        """Read from a pipe, as a shell makes of <(...)."""
        torch.save({"a": torch.ones(2)}, tmp_path / "state")
        os.mkfifo(tmp_path / "pipe")
        data = (tmp_path / "state").read_bytes()
        writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(data,))
        writer.start()
        assert read_state(tmp_path / "pipe").arrays["a"].tolist() == [1, 1]
        writer.join()

    def test_damage_and_objects(self, torch, tmp_path):
        path = tmp_path / "model"
        torch.save({"state_dict": {"a": torch.ones(1)}, "arguments": sys.stdin.__class__}, path)
        with pytest.raises(UsageError, match=r"was not loaded, .* could run code: ") as error:
            read_state(path)
        assert "weights_only" not in str(error.value)
        self.save(torch, path, {"a": np.zeros(100)})
        for data in (path.read_bytes()[:300], b"", b"text", b"\x80\x02."):
            path.write_bytes(data)
            with pytest.raises(UsageError, match=r"not a PyTorch checkpoint|holds no state_dict"):
                read_state(path)

    @pytest.mark.slow
    def test_the_command_and_training_on(self, torch, tmp_path):
        """Run the commands as a user does, on digits, since CIFAR-10 is not available."""
        arrays = state() | {"conv1.weight": golden().arrays["conv1.weight"][:, :1]}
        self.save(torch, tmp_path / "model.tar", arrays)
        founded = ["--config=configs/digits.py", f"--workdir={tmp_path / 'run'}"]
        epochs = "--config.epochs=1"
        result = run(
            *("convert", tmp_path / "model.tar", f"--model={NAME}", *founded, epochs),
            f"--out={tmp_path / 'model.safetensors'}",
        )
        assert result.returncode == 0, result.stderr
        assert "warning: 50" in result.stderr
        result = run("main", *founded, epochs)
        assert result.returncode == 0, result.stderr
        row = json.loads((tmp_path / "run" / "log.jsonl").read_text())
        assert row["step"] == 89
