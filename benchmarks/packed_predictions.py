"""Compares the predictions of a packed network with those of its run's evaluation.

    python -m benchmarks.packed_predictions runs/digits digits.safetensors

For the run's whole test set, by `load(exact=True)` and by default: how many predictions differ from
evaluation, how many images have exactly equal logits, and the largest difference of logits. The
file must come from `export` of the run's last checkpoint.
"""

import argparse
import json
from pathlib import Path

import jax
import numpy as np

import siman_jax
from siman_jax.data import load_dataset
from siman_jax.devices.mesh import make_mesh
from siman_jax.models.normalization import normalize
from siman_jax.program.interpret import interpret
from siman_jax.program.prove import proven_program
from siman_jax.runs.stored_run import load_run
from siman_jax.runs.workdir import read_config
from siman_jax.training.task import image_shape, model_from_config

_BATCH = 500


def main() -> None:
    """Compare, and print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("workdir", type=Path)
    parser.add_argument("model", type=Path)
    arguments = parser.parse_args()

    jax.config.update("jax_platforms", "cpu")
    config = read_config(arguments.workdir)
    test = load_dataset(config.data).test
    state = load_run(config, arguments.workdir, make_mesh(1)).progress.state
    images = normalize(test.images[:8], config.data.mean, config.data.std)
    program, proof = proven_program(
        model_from_config(config), state.variables(), image_shape(config), images
    )
    print(proof)

    @jax.jit
    def evaluate(images: jax.Array) -> jax.Array:
        normalized = normalize(images, config.data.mean, config.data.std)
        return interpret(program, normalized)

    batches = [test.images[start : start + _BATCH] for start in range(0, len(test), _BATCH)]
    expected = np.concatenate([evaluate(images) for images in batches])
    report: dict = {
        "images": len(test),
        "top1": 100 * float(np.mean(expected.argmax(1) == test.labels)),
    }
    for exact in (True, False):
        model = siman_jax.load(arguments.model, exact=exact)
        found = np.concatenate([model(images) for images in batches])
        report["exact" if exact else "default"] = {
            "predictions_that_differ": int(np.sum(found.argmax(1) != expected.argmax(1))),
            "images_of_equal_logits": int(np.sum((found == expected).all(1))),
            "largest_difference_of_logits": float(np.max(np.abs(found - expected))),
        }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
