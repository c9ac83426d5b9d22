"""Tests of the table of parameters and multiply-accumulates against counts by hand."""

import jax
import pytest
from flax.traverse_util import flatten_dict

from siman_jax.models import NETWORKS, build_model
from siman_jax.models.images import default_images
from siman_jax.models.summary import print_summary, summarize


def total(layers, name):
    return sum(getattr(layer, name) for layer in layers)


def test_resnet18_at_224_has_1_68_billion_binary_macs():
    """Counted by hand: height x width x 9 x in x out for every 3x3 convolution.

    56 x 56 x 9 x 64 x 64, four times, is 462,422,016. Each later stage halves the side and
    doubles the channels, so its three ordinary convolutions cost 115,605,504 each and the
    first, with half the input channels, 57,802,752: together 404,619,264, three times.
    """
    layers = summarize(build_model("imagenet.resnet18_1w1a", 1000), (224, 224, 3))
    by_hand = 4 * 56 * 56 * 9 * 64 * 64 + 3 * (3 * 28 * 28 * 9 * 128 * 128 + 28 * 28 * 9 * 64 * 128)
    assert by_hand == 1_676_279_808
    assert total(layers, "binary_macs") == by_hand
    stem, classifier = 112 * 112 * 7 * 7 * 3 * 64, 512 * 1000
    shortcuts = 28 * 28 * 64 * 128 + 14 * 14 * 128 * 256 + 7 * 7 * 256 * 512
    assert total(layers, "real_macs") == stem + shortcuts + classifier
    stages = ((64, 128), (128, 256), (256, 512))
    kernels = 4 * 64**2 + sum(before * after + 3 * after**2 for before, after in stages)
    assert total(layers, "binary_params") == 9 * kernels


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_is_in_a_row(name):
    size = default_images(NETWORKS[name], 10).size
    model = build_model(name, 10, width=8)
    layers = summarize(model, (size, size, 3))
    variables = jax.eval_shape(
        lambda key: model.init(key, jax.numpy.zeros((1, size, size, 3)), train=False),
        jax.random.key(0),
    )
    leaves = flatten_dict(variables)
    assert total(layers, "binary_params") + total(layers, "real_params") == sum(
        leaf.size for leaf in leaves.values()
    )
    assert {layer.name for layer in layers} == {"/".join(path[1:-1]) for path in leaves}


def test_a_real_twin_has_no_binary_work():
    rules = {"weight_rule": "real", "activation_rule": "real"}
    layers = summarize(build_model("cifar.resnet20_1w1a", 10, **rules), (32, 32, 3))
    assert total(layers, "binary_macs") == total(layers, "binary_params") == 0
    assert total(layers, "real_macs") == 40_551_040  # 0.41 x 10^8, as commonly counted


def test_binary_weights_with_real_activations_are_small_but_not_binary_work():
    model = build_model("cifar.resnet20_1w1a", 10, activation_rule="real")
    layers = summarize(model, (32, 32, 3))
    assert total(layers, "binary_params") == 267_264
    assert total(layers, "binary_macs") == 0


def test_the_table_has_a_row_per_layer_and_totals(capsys):
    layers = summarize(build_model("cifar.resnet20_1w1a", 10), (32, 32, 3))
    print_summary(layers)
    printed = capsys.readouterr().out
    assert all(layer.name in printed for layer in layers)
    assert "…" not in printed
    assert "267,264" in printed
    assert "compression: 19.8x" in printed
    assert "binary MACs: 98.9 %" in printed
