"""Every public name of `siman_jax` has an example, and the examples run."""

import doctest
import inspect
import sys
import textwrap

import numpy as np
import pytest
from cli import call

import siman_jax
from siman_jax import export

# Examples that need a run or its files, which are run here; those of the others are doctests.
WITH_FILES = {"load", "train"}
SMALL = """
config.epochs, config.batch_size, config.eval_batch_size = 1, 32, 32
config.model.name, config.model.width = "cifar.vgg_small_1w1a", 4
"""


def block(name):
    """The indented code of a docstring."""
    lines = inspect.getdoc(getattr(siman_jax, name)).split("\n")
    start = next(index for index, line in enumerate(lines) if line.startswith("    "))
    end = next(i for i in range(start, len(lines)) if lines[i] and not lines[i].startswith("    "))
    return textwrap.dedent("\n".join(lines[start:end]))


@pytest.mark.parametrize("name", sorted(set(siman_jax.__all__) - WITH_FILES))
def test_every_name_has_an_example(name):
    value = getattr(siman_jax, name)
    # A table is documented by its module.
    documented = value if hasattr(value, "__name__") else sys.modules[siman_jax._MODULES[name]]
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(documented))
    assert any(name in example.source for example in examples)


@pytest.mark.slow
def test_training_and_loading(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, 8, 8, 1), np.uint8)
    labels = np.arange(64) % 10
    given = {"siman_jax": siman_jax, "images": images[:2]}
    for split in ("train", "test"):
        given |= {f"{split}_images": images, f"{split}_labels": labels}
    before, setting, after = block("train").partition("config = digits.get_config()\n")
    assert setting
    exec(before + setting + SMALL + after, given)
    assert 0 <= float(capsys.readouterr().out.splitlines()[-1]) <= 100
    call(export.main, "runs/mine", f"--out={tmp_path / 'model.safetensors'}")
    exec(block("load"), given)
    assert given["logits"].shape == (2, 10)
