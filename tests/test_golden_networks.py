"""Tests of whole networks against the authors' program: evaluation, and five training steps."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from comparisons import relative_error
from flax.traverse_util import flatten_dict, path_aware_map, unflatten_dict
from golden_data import NETWORKS, Golden, load_golden
from parameters import first_quickly

from siman_jax.configs import cifar10
from siman_jax.models import build_model
from siman_jax.models.leaves import BINARY_KERNEL, BITS, binary_bits
from siman_jax.pytorch.names import flax_path, variables_from_torch
from siman_jax.training.optimizer import build_optimizer, project_binary_kernels
from siman_jax.training.step import TrainState, train_step

TOLERANCE = 1e-9
# A batch norm follows, so the gradient of alpha is a small difference of large numbers.
TOLERANCE_OF_ALPHA = 1e-7


def torch_layout(array: np.ndarray) -> np.ndarray:
    """Transpose HWIO to OIHW, and `[in, out]` to `[out, in]`."""
    array = np.asarray(array, np.float64)
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def summarize(array: np.ndarray) -> np.ndarray:
    """Return size, mean, norm, largest magnitude and first elements, in PyTorch's layout."""
    flat = torch_layout(array).ravel()
    first = np.pad(flat[:4], (0, max(0, 4 - flat.size)))
    return np.array([flat.size, flat.mean(), np.sqrt(np.sum(flat**2)), np.abs(flat).max(), *first])


def assert_summary(found: np.ndarray, expected: np.ndarray, tolerance: float, name: str) -> None:
    """Compare summaries: sizes exactly, the rest relative to the largest magnitude."""
    summary = summarize(found)
    assert summary[0] == expected[0], name
    error = np.abs(summary[1:] - expected[1:]).max() / max(expected[3], 1e-300)
    assert error < tolerance, f"{name}: {error:.1e}"


def remember_gradients() -> optax.GradientTransformation:
    """Pass gradients on and keep them as the state."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), lambda g, _, __: (g, g)
    )


def authors_optimizer(golden: Golden) -> optax.GradientTransformation:
    """Build the authors' SGD, with their own list of leaves without weight decay.

    In CIFAR's ResNet-18 they decay the binary shortcuts; elsewhere it is `build_optimizer`.
    """
    settings = golden.settings
    if golden.name != "resnet18":
        config = cifar10.get_config().optimizer
        config.update(momentum=settings["momentum"], weight_decay=settings["weight_decay"])
        return optax.chain(remember_gradients(), build_optimizer(config, settings["lr"]))
    undecayed = {
        flax_path(name, binary=True)[1:]
        for name, _, kind, undecayed in golden.settings["tensors"]
        if undecayed and kind in ("weight", "alpha")
    }
    return optax.chain(
        remember_gradients(),
        optax.add_decayed_weights(
            settings["weight_decay"],
            mask=partial(path_aware_map, lambda path, _: path not in undecayed),
        ),
        optax.sgd(settings["lr"], settings["momentum"]),
    )


@dataclass(frozen=True)
class Trained:
    """A golden network, and the results of five training steps here.

    Attributes:
      golden: what to compare with.
      variables: the authors' initial state, under the names here.
      evaluate: compiled evaluation, variables and images to logits.
      states: before the first step and after each.
      losses: before each update.
      projected: parameters as projected at the start of each step.
    """

    golden: Golden
    variables: dict
    evaluate: Callable
    states: list[TrainState]
    losses: np.ndarray
    projected: list[dict]

    def collections(self) -> dict[tuple[str, ...], np.ndarray]:
        """All values after the fifth step, with the bits of the fifth forward pass."""
        bits = binary_bits(self.projected[-1], "half_half")
        return {
            **flatten_dict({"params": self.states[-1].params}),
            **flatten_dict({"batch_stats": self.states[-1].batch_stats}),
            **{(BITS, *name.split("/"), BINARY_KERNEL): b for name, b in bits.items()},
        }


@pytest.fixture(scope="module", params=first_quickly(NETWORKS))
def trained(request: pytest.FixtureRequest) -> Iterator[Trained]:
    with jax.enable_x64(True):
        golden = load_golden(request.param)
        name = NETWORKS[request.param]
        model = build_model(name, golden.settings["classes"], dtype=jnp.float64)
        variables = variables_from_torch(name, golden.arrays)
        params, batch_stats = variables["params"], variables["batch_stats"]
        optimizer = authors_optimizer(golden)
        percents = jnp.asarray(golden.settings["percents"])
        project = jax.jit(project_binary_kernels)
        step = jax.jit(
            partial(
                train_step,
                model=model,
                optimizer=optimizer,
                schedules={"clip_percent": lambda i: percents[i]},
            )
        )
        states = [TrainState(jnp.int32(0), params, batch_stats, optimizer.init(params))]
        losses, projected = [], []
        for percent in percents:
            projected.append(project(states[-1].params, percent))
            state, sums = step(states[-1], jnp.asarray(golden.images), jnp.asarray(golden.labels))
            states.append(state)
            losses.append(float(sums.loss) / len(golden.labels))
        evaluate = jax.jit(partial(model.apply, train=False))
        yield Trained(golden, variables, evaluate, states, np.array(losses), projected)


def test_evaluation_with_given_bits(trained: Trained) -> None:
    logits = trained.evaluate(trained.variables, trained.golden.images)
    assert relative_error(logits, trained.golden.results["eval_logits"]) < TOLERANCE


def test_losses_of_five_steps(trained: Trained) -> None:
    assert relative_error(trained.losses, trained.golden.results["losses"]) < TOLERANCE


def test_logits_of_the_first_step(trained: Trained) -> None:
    name = NETWORKS[trained.golden.name]
    model = build_model(name, trained.golden.settings["classes"], dtype=jnp.float64)
    apply = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))
    variables = {**trained.states[0].variables(), "params": trained.projected[0]}
    logits, _ = apply(variables, trained.golden.images)
    assert relative_error(logits, trained.golden.results["train_logits"]) < TOLERANCE


def test_gradients_of_the_first_step(trained: Trained) -> None:
    gradients = flatten_dict({"params": trained.states[1].opt_state[0]})
    compare(trained.golden, "grad/", gradients)


def test_state_after_five_steps(trained: Trained) -> None:
    compare(trained.golden, "after/", trained.collections())


def test_evaluation_after_five_steps(trained: Trained) -> None:
    variables = unflatten_dict(trained.collections())
    logits = trained.evaluate(variables, trained.golden.images)
    assert relative_error(logits, trained.golden.results["eval_logits_after"]) < TOLERANCE


def test_first_binary_convolution(trained: Trained) -> None:
    name = trained.golden.settings["clipped_convs"][0]
    path = flax_path(f"{name}.weight", binary=True)[1:]
    expected = {
        key: trained.golden.results[f"first_binary_conv/{key}"]
        for key in ("weight_after_projection", "bits", "grad")
    }
    kernel = torch_layout(flatten_dict(trained.projected[0])[path])
    assert relative_error(kernel, expected["weight_after_projection"]) < TOLERANCE
    bits = binary_bits(trained.projected[0], "half_half")["/".join(path[:-1])]
    np.testing.assert_array_equal(torch_layout(bits).reshape(len(kernel), -1), expected["bits"])
    gradient = torch_layout(flatten_dict(trained.states[1].opt_state[0])[path])
    assert relative_error(gradient, expected["grad"]) < TOLERANCE


def compare(golden: Golden, prefix: str, found: Mapping[tuple[str, ...], np.ndarray]) -> None:
    """Compare every summary of the golden file with a leaf here; no leaf may be left over."""
    left = set(found)
    for key, expected in golden.results.items():
        name = key.removeprefix(prefix)
        if not key.startswith(prefix):
            continue
        path = flax_path(name, binary=f"{name.rpartition('.')[0]}.alpha" in golden.arrays)
        if path is None:  # percent and the count of batches are not used here
            continue
        tolerance = TOLERANCE_OF_ALPHA if prefix == "grad/" and path[-1] == "alpha" else TOLERANCE
        assert_summary(found[path], expected, tolerance, name)
        left.remove(path)
    assert not left
