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
from siman_jax.program.interpret import interpret
from siman_jax.program.operations import Program
from siman_jax.program.trace import trace

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
    networks = {name: jax.device_put(program, device) for name, program in networks.items()}
    images = {
        batch: jax.device_put(random_images(case, batch, channels_first=False), device)
        for batch in batches
    }
    pool = ThreadPoolExecutor(len(networks) * len(batches))
    futures = {
        (batch, name): pool.submit(compile_logits, networks[name], images[batch])
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
                calls[label] = partial(future.result(), networks[name], images[batch])
        for label, row in time_in_turn(calls, batch, part.quick).items():
            part.add("calls", label, row)


def packed(case: Case) -> Program:
    """Return the program of the packed network."""
    return _program(case, "half_half", "siman")


def twin(case: Case) -> Program:
    """Return the program of the real-valued network, with weights in bfloat16."""
    return jax.tree.map(jnp.bfloat16, _program(case, "real", "real"))


def _program(case: Case, weight_rule: str, activation_rule: str) -> Program:
    model = build_model(
        case.network,
        case.num_classes,
        width=case.width,
        weight_rule=weight_rule,
        activation_rule=activation_rule,
    )
    shape = (case.image_size, case.image_size, 3)
    return trace(model, random_variables(model, case), shape)


def compile_logits(program: Program, images: Array) -> Logits:
    """Compile a program for one batch size; it computes in the dtype of its real weights."""
    (dtype,) = {leaf.dtype for leaf in jax.tree.leaves(program)} - {jnp.dtype("uint32")}

    def logits(program: Program, images: Array) -> Array:
        return interpret(program, images.astype(dtype))

    return jax.jit(logits).lower(program, images).compile()


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
