"""Checks that the device computes the same as the CPU: integers, bits, gradients and losses.

- Sums of bits by the device's matrix unit must be integers equal to the CPU's, and so must the
  bits of given magnitudes, including ties. Bits of whole kernels, which are standardized first, may
  differ through rounding; their share is shown.
- Gradients of one step of ResNet-20, in float32 at highest precision, must equal those of the CPU
  in float64 up to 1e-4 of the largest number in the array. All bits are taken from the CPU, since
  one different bit would change everything after it. For the same reason PReLU's slopes are 1, and
  the stem's offsets are so large that no ReLU is near its corner. Arrays whose true gradient is 0,
  because a norm after them cancels it, are compared to 1e-4 of the network's largest number.
- Losses of the first twenty steps, with the device's own bits, are shown next to the CPU's.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array, lax

from benchmarks.accelerator_parts.part import Part, describe_device, run
from siman_jax.configs import cifar10
from siman_jax.models import build_model
from siman_jax.models.leaves import CHOSEN
from siman_jax.native.dispatch import native
from siman_jax.program.kernels import binary_conv, pack_kernel
from siman_jax.rules import ACTIVATION_RULES
from siman_jax.rules.magnitude_bits import half_half_bits
from siman_jax.rules.siman import project_and_choose, siman_activation
from siman_jax.training.metrics import cross_entropy
from siman_jax.training.optimizer import build_optimizer, prepare_binary_kernels
from siman_jax.training.step import create_state, train_step

NETWORK = "cifar.resnet20_1w1a"
PERCENT = 10.0
STEPS = 20
TOLERANCE = 1e-4
# Kernel size, strides, image size, channels, features.
CONVOLUTIONS = ((3, 1, 14, 64, 64), (3, 2, 15, 40, 32), (1, 1, 7, 512, 64), (3, 1, 7, 512, 128))

# Makes XLA's CPU backend compile ten times faster.
QUICKLY = {"xla_backend_optimization_level": 0}


def main(part: Part) -> None:
    """Run all checks, the cheapest first."""
    part.write(**describe_device())
    # With a small batch, the last norm, which is over the batch only, would magnify rounding.
    width, batch, size = (4, 16, 8) if part.quick else (16, 16, 16)
    checks: dict[str, Callable[[], dict[str, Any]]] = {
        "sums of bits": check_sums,
        "bits": check_bits,
        "gradients": partial(compare_gradients, width, batch, size),
        "losses": partial(compare_losses, width, batch, size),
    }
    for name, check in checks.items():
        try:
            part.add("checks", name, check())
        except Exception as error:  # the other checks may still work
            part.leave_out(name, f"{type(error).__name__}: {error}")


def on_each(function: Any, *arguments: Any) -> list[Any]:
    """Return the results of a function on the device and on the CPU."""
    compiled = jax.jit(function)
    devices = jax.devices()[0], jax.devices("cpu")[0]
    return [jax.device_get(compiled(*jax.device_put(arguments, device))) for device in devices]


def check_sums() -> dict[str, Any]:
    """Compare sums of products of bits."""
    rng = np.random.default_rng(0)
    different, largest = 0, 0
    for kernel_size, strides, size, channels, features in CONVOLUTIONS:
        x = rng.random((2, size, size, channels)) < 0.5
        kernel = rng.random((kernel_size, kernel_size, channels, features)) < 0.5
        x[1], kernel[..., 0] = True, True  # gives the largest possible sum
        half = kernel_size // 2

        def convolve(x: Array, kernel: Array, strides: int = strides, half: int = half) -> Array:
            padding = ((half, half), (half, half))
            return binary_conv(x, pack_kernel(kernel), strides=strides, padding=padding)

        ours, expected = on_each(convolve, x, kernel)
        different += int(np.sum(ours != expected))
        largest = max(largest, int(np.abs(expected).max()))
    return {"passed": different == 0, "different": different, "largest_sum": largest}


def check_bits() -> dict[str, Any]:
    """Compare bits of given magnitudes, and of kernels of a network."""
    rng = np.random.default_rng(0)
    u = rng.standard_normal((3, 3, 64, 96)).astype(np.float32)
    u[..., ::2] = np.round(8 * u[..., ::2]) / 8
    ours, by_cpu = on_each(half_half_bits, u)
    different = int(np.sum(ours != by_cpu))

    shapes = ((3, 3, 16, 16), (3, 3, 32, 64), (3, 3, 64, 64), (1, 1, 64, 128))
    kernels = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    choose = partial(project_and_choose, percent=PERCENT)
    (projected, chosen), (expected_projected, expected) = on_each(choose, kernels)
    total = sum(own.bits.size for own in chosen)
    fallen = sum(int(np.sum(a.bits != b.bits)) for a, b in zip(chosen, expected, strict=True))
    error = max(
        float(np.max(np.abs(a - b))) for a, b in zip(projected, expected_projected, strict=True)
    )
    return {
        "passed": different == 0 and fallen <= 1e-4 * total and error < 1e-5,
        "different": different,
        "of": u.size,
        "different_after_standardizing": fallen,
        "of_these": total,
        "error_of_the_projection": error,
    }


def compare_gradients(width: int, batch: int, size: int) -> dict[str, Any]:
    """Compare gradients on the device in float32 with the CPU's in float64."""
    cpu = jax.devices("cpu")[0]
    rng = np.random.default_rng(1)
    images = rng.standard_normal((batch, size, size, 3))
    labels = rng.integers(0, 10, batch).astype(np.int32)
    with jax.default_device(cpu), jax.enable_x64(True), native(False):
        model = build_model(NETWORK, 10, width=width, dtype=jnp.float64)
        variables = jax.jit(partial(model.init, train=False), compiler_options=QUICKLY)(
            jax.random.key(0), images[:1]
        )
        params = without_corners(
            jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
        )
        prepare = jax.jit(
            lambda params: prepare_binary_kernels(params, PERCENT, project_and_choose),
            compiler_options=QUICKLY,
        )
        params, chosen = jax.device_get(prepare(params))
        arguments = params, variables["batch_stats"], chosen, images, labels
        function = jax.jit(partial(gradients, model), compiler_options=QUICKLY)
        expected, codes = jax.device_get(function(*arguments))

    narrow = jax.tree.map(
        lambda x: np.asarray(x, np.float32) if x.dtype == np.float64 else x, (arguments, codes)
    )
    model = build_model(NETWORK, 10, width=width, dtype=jnp.float32)
    with jax.default_matmul_precision("highest"), native(False):
        arguments, codes = jax.device_put(narrow, jax.devices()[0])
        found, _ = jax.device_get(jax.jit(partial(gradients, model))(*arguments, codes))
    errors = relative_errors(flatten_dict(found, sep="/"), flatten_dict(expected, sep="/"))
    worst = sorted(errors, key=lambda name: -errors[name])[:3]
    return {
        "passed": bool(max(errors.values()) <= TOLERANCE),
        "largest_error": max(errors.values()),
        "worst": {name: errors[name] for name in worst},
        "arrays": len(errors),
    }


def relative_errors(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, float]:
    """Return the largest error in each array over its largest number; see the top of this file."""
    largest = {name: float(np.abs(x).max()) for name, x in expected.items()}
    most = max(largest.values())
    return {
        name: float(np.abs(found[name] - x).max())
        / (largest[name] if largest[name] > 1e-10 * most else most)
        for name, x in expected.items()
    }


def without_corners(params: Any) -> Any:
    """Change parameters so that corners of PReLU and the stem's ReLU do not matter."""
    flat = flatten_dict(params)
    for path, leaf in flat.items():
        if path[-1] == "slope":
            flat[path] = np.ones_like(leaf)
    flat["bn1", "bias"] = np.full_like(flat["bn1", "bias"], 8)
    return unflatten_dict(flat)


def gradients(
    model: Any,
    params: Any,
    batch_stats: Any,
    chosen: Any,
    images: Array,
    labels: Array,
    codes: list[Array] | None = None,
) -> tuple[Any, list[Array]]:
    """Compute gradients of the mean loss, with given bits.

    Args:
      model: a network with the weight rule half_half.
      params: its parameters.
      batch_stats: its running statistics.
      chosen: bits of its kernels.
      images: normalized, `[batch, height, width, channels]`.
      labels: int32 `[batch]`.
      codes: +-1, the binary activations of each layer; None to compute them by the rule.

    Returns:
      The gradients, and the codes.
    """

    def loss(params: Any) -> tuple[Array, list[Array]]:
        taken: list[Array] = []
        given: Iterator[Array] = iter(codes or ())

        def rule(x: Array) -> Array:
            code = siman_activation(x)
            if codes is not None:
                code += lax.stop_gradient(next(given) - code)
            taken.append(code)
            return code

        recording = replace(ACTIVATION_RULES["siman"], function=rule)
        with mock.patch.dict(ACTIVATION_RULES, {"siman": recording}):
            logits, _ = model.apply(
                {"params": params, "batch_stats": batch_stats, CHOSEN: chosen},
                images,
                train=True,
                mutable=["batch_stats"],
            )
        return jnp.mean(cross_entropy(logits, labels)), taken

    return jax.grad(loss, has_aux=True)(params)


def compare_losses(width: int, batch: int, size: int) -> dict[str, Any]:
    """Compute mean losses of the first steps on one batch, on the device and on the CPU."""
    rng = np.random.default_rng(2)
    images = rng.standard_normal((batch, size, size, 3)).astype(np.float32)
    labels = rng.integers(0, 10, batch).astype(np.int32)
    model = build_model(NETWORK, 10, width=width)
    optimizer = build_optimizer(cifar10.get_config().optimizer, 0.1)
    step = partial(
        train_step,
        model=model,
        optimizer=optimizer,
        schedules={"clip_percent": lambda _: jnp.float32(PERCENT)},
    )
    cpu, device = jax.devices("cpu")[0], jax.devices()[0]
    create = partial(create_state, model, optimizer, image_shape=(size, size, 3))
    with jax.default_device(cpu):
        start = jax.jit(create, compiler_options=QUICKLY)(jax.random.key(0))
    losses = {}
    for name, place in (("device", device), ("cpu", cpu)):
        with jax.default_matmul_precision("highest"), native(False):
            state, *batch_on_it = jax.device_put((start, images, labels), place)
            compiled = jax.jit(step)
            losses[name] = []
            for _ in range(STEPS):
                state, sums = compiled(state, *batch_on_it)
                losses[name].append(float(sums.loss) / batch)
    return losses


if __name__ == "__main__":
    run(main)
