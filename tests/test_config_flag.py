"""What is wrong with --config=FILE and --config.FIELD=VALUE, and which file is meant."""

import sys

import pytest
from cli import REPOSITORY, call

from siman_jax import main as command
from siman_jax import sweep
from siman_jax.command import lock_config
from siman_jax.errors import UsageError
from siman_jax.runs.sweep_plan import load_sweep
from siman_jax.shipped import find_config

DIGITS = "--config=configs/digits.py"

# ml_collections loads a config's file by what Python 3.11 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def parsed(monkeypatch, *arguments):
    """The config that the command gets."""
    found = []
    monkeypatch.setattr(sys, "argv", ["command", *arguments])  # ml_collections reads it
    call(lambda argv: found.append(command._CONFIG.value), *arguments)
    return found[0]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.bach_size=3", "unknown config field 'bach_size'; did you mean 'batch_size'?"),
        ("--config.batch-size=3", "unknown config field 'batch-size'; did you mean 'batch_size'?"),
        ("--config.modl.width=3", "unknown config field 'modl.width'; did you mean 'model'?"),
        ("--config.width=3", "unknown config field 'width'; did you mean 'model.width'?"),
        (
            "--config.model.zzz=3",
            "unknown config field 'model.zzz'. model has: model.activation_rule, model.dtype,"
            " model.last_norm, model.name, model.pooled_shortcuts, model.shifts,"
            " model.weight_rule, model.width.",
        ),
        ("--config.zzz=3", "'zzz'. The config has: accumulation_steps, average_decay, "),
        ("--config.seed.x=3", "unknown config field 'seed.x': seed is 0, which has no fields."),
        ("--config.batch_size=abc", "=abc: it must be a whole number, such as 16."),
        ("--config.batch_size=", "--config.batch_size=: it must be a whole number, such as 16."),
        ("--config.optimizer.momentum=x", "=x: it must be a number, such as 0.9."),
        ("--config.native=maybe", "=maybe: it must be True or False, such as True."),
        ("--config.model=3", "model is a section; set one of its fields: --config.model.act"),
    ],
)
def test_a_field_that_cannot_be_set(flag, message, monkeypatch):
    with pytest.raises(UsageError) as error:
        parsed(monkeypatch, DIGITS, flag)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("a", ("a",)), ("a,b", ("a", "b")), ("a, b", ("a", "b")), ("('a','b')", ("a", "b")), ("", ())],
)
def test_a_field_of_several_texts(text, value, monkeypatch):
    config = parsed(monkeypatch, DIGITS, f"--config.optimizer.undecayed={text}")
    assert lock_config(config).optimizer.undecayed == value


@pytest.mark.parametrize(
    "name", ["cifar10", "cifar100", "cifar10_strong", "digits", "image_folder", "imagenet"]
)
def test_every_config_takes_a_fraction_of_an_epoch_as_warmup(name, monkeypatch):
    flag = "--config.optimizer.warmup_epochs=2.5"
    assert parsed(monkeypatch, f"--config=configs/{name}.py", flag).optimizer.warmup_epochs == 2.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"mine.py defines no get_config\(\); expected a function"),
        ("def get_config():\n    return {}['x']\n", r"KeyError: 'x' \(mine.py, line 2\)\."),
        ("import not_there\n", r"ModuleNotFoundError: No module .* \(mine.py, line 1\)\."),
        ("def get_config(:\n", r"SyntaxError: invalid syntax \(mine.py, line 1\)\."),
    ],
)
def test_a_config_that_fails_is_told_with_its_line(text, message, monkeypatch, tmp_path):
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.delitem(sys.modules, "config_config", raising=False)  # of another test's config
    with pytest.raises(UsageError, match=message):
        parsed(monkeypatch, f"--config={tmp_path / 'mine.py'}")


@pytest.mark.parametrize("written", [["--config=FILE"], ["-config=FILE"], ["--config", "FILE"]])
def test_a_shipped_config_is_found_from_any_folder(written, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    file = "configs/cifar10.py:vgg_small"
    arguments = [text.replace("FILE", file) for text in written]
    config = parsed(monkeypatch, *arguments, "--config.epochs=3")
    assert (config.model.name, config.epochs) == ("cifar.vgg_small_1w1a", 3)
    assert capsys.readouterr().err == (
        "configs/cifar10.py is not in this folder; using the one shipped with siman_jax.\n"
    )


def test_a_config_of_ones_own_builds_on_a_shipped_one(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.py").write_text(
        "from siman_jax.configs import digits\n"
        "def get_config():\n"
        "    config = digits.get_config()\n"
        "    config.epochs = 7\n"
        "    return config\n"
    )
    assert parsed(monkeypatch, f"--config={tmp_path / 'elsewhere' / 'mine.py'}").epochs == 7
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parsed(monkeypatch, "--config=~/elsewhere/mine.py").epochs == 7
    # One's own file of a shipped one's name comes first.
    (tmp_path / "elsewhere").rename(tmp_path / "configs")
    (tmp_path / "configs" / "mine.py").rename(tmp_path / "configs" / "digits.py")
    assert parsed(monkeypatch, DIGITS).epochs == 7
    assert not capsys.readouterr().err


def test_a_shipped_sweep_is_found_from_any_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path = find_config(sweep.local_path("configs/sweeps/digits.py", "sweep"))
    assert load_sweep(path).name == "digits"
    with pytest.raises(UsageError, match=r"shipped with siman_jax: configs/sweeps/clip\.py, "):
        call(sweep.main, "configs/sweeps/digit.py", "--workdir=unused")


@pytest.mark.parametrize(
    "name", ["configs/nope.py", "nope.py", "configs/../errors.py", "/configs/digits.py", "x" * 5000]
)
def test_there_is_no_such_file(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UsageError, match=r"there is no file .* shipped with siman_jax: configs/cifar10\.py, "
    ):
        parsed(monkeypatch, f"--config={name}")


def test_the_package_has_the_configs_that_the_repository_shows():
    for file in (REPOSITORY / "configs").rglob("*.py"):
        name = file.relative_to(REPOSITORY)
        assert (REPOSITORY / "siman_jax" / name).read_bytes() == file.read_bytes()
