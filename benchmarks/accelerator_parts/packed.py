"""Measures inference of ImageNet's ResNet-18: packed, and its real-valued network in bfloat16.

A call maps normalized float32 images on the device to logits there, and is waited for. So the
smallest batch gives the time of one image with its dispatch. Batch norms are folded on both sides.
The two sides take turns.
"""

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from benchmarks.accelerator_parts.part import Part, describe_device, run
from benchmarks.case import Case
from benchmarks.engines import random_images, random_variables
from siman_jax.models import build_model
from siman_jax.models.folding import fold, folded_twin
from siman_jax.packed.network import pack_unchecked, packed_logits

CASE = Case("imagenet.resnet18_1w1a", 224, 1000, 64)
BATCHES = (1, 256)
ROUNDS = 5
PACKED, TWIN = "packed", "bfloat16 twin"

Logits = Callable[[Any, Array], Array]


def main(part: Part) -> None:
    """Compile both networks for each batch size, and time them in turns."""
    part.write(**describe_device())
    case = CASE._replace(image_size=32, num_classes=10, width=8) if part.quick else CASE
    batches = (1, 4) if part.quick else BATCHES
    with jax.default_device(jax.devices("cpu")[0]):
        networks = {PACKED: packed(case), TWIN: twin(case)}
    device = jax.devices()[0]
    networks = {
        name: (function, jax.device_put(variables, device))
        for name, (function, variables) in networks.items()
    }
    images = {
        batch: jax.device_put(random_images(case, batch, channels_first=False), device)
        for batch in batches
    }
    pool = ThreadPoolExecutor(len(networks) * len(batches))
    futures = {
        (batch, name): pool.submit(compile_logits, *networks[name], images[batch])
        for batch in batches
        for name in networks
    }
    wait(futures.values(), timeout=part.seconds_left - 2 * len(futures))
    for batch in batches:
        calls = {}
        for name in networks:
            future, label = futures[batch, name], f"{name}, batch {batch}"
            if not future.done():
                part.leave_out(label, "it was still being compiled")
            elif (error := future.exception()) is not None:
                part.leave_out(label, f"{type(error).__name__}: {error}")
            else:
                calls[label] = partial(future.result(), networks[name][1], images[batch])
        for label, row in time_in_turn(calls, batch, part.quick).items():
            part.add("calls", label, row)


def packed(case: Case) -> tuple[Logits, Any]:
    """Return the packed network: a function of variables and images, and its variables."""
    model = _model(case, "half_half", "siman", jnp.float32)
    return partial(packed_logits, model), pack_unchecked(model, random_variables(model, case))


def twin(case: Case) -> tuple[Logits, Any]:
    """Return the real-valued network: a function of variables and images, and its variables."""
    model = _model(case, "real", "real", jnp.bfloat16)
    variables = jax.jit(partial(fold, model))(random_variables(model, case))
    return partial(folded_twin(model).apply, train=False), variables


def _model(case: Case, weight_rule: str, activation_rule: str, dtype: Any) -> Any:
    return build_model(
        case.network,
        case.num_classes,
        width=case.width,
        weight_rule=weight_rule,
        activation_rule=activation_rule,
        dtype=dtype,
    )


def compile_logits(function: Logits, variables: Any, images: Array) -> Logits:
    """Compile a function for one batch size."""
    return jax.jit(function).lower(variables, images).compile()


def time_in_turn(
    calls: dict[str, Callable[[], Array]], batch: int, quick: bool
) -> dict[str, dict[str, Any]]:
    """Measure milliseconds per call and images per second, as medians over rounds."""
    turns: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(2 if quick else ROUNDS):
        for name, call in calls.items():
            end = time.perf_counter() + (0.05 if quick else 0.3)
            while (start := time.perf_counter()) < end:
                jax.block_until_ready(call())
                turns[name].append(time.perf_counter() - start)
    return {
        name: {
            "median_ms": 1e3 * statistics.median(seconds),
            "best_ms": 1e3 * min(seconds),
            "calls": len(seconds),
            "images_per_second": batch / statistics.median(seconds),
        }
        for name, seconds in turns.items()
    }


if __name__ == "__main__":
    run(main)
