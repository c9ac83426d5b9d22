"""Odd values of a config's fields, given as flags, up to where training would begin."""

import contextlib
import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from absl.testing import flagsaver

from siman_jax import main
from siman_jax.command import lock_config, parse_flags
from siman_jax.configs import digits
from siman_jax.devices.mesh import make_mesh
from siman_jax.errors import UsageError
from siman_jax.models import NETWORKS
from siman_jax.rules import ACTIVATION_RULES, WEIGHT_RULES
from siman_jax.runs.snapshot import abstract_snapshot, creation
from siman_jax.training.field_types import flat
from siman_jax.training.schedules import LEARNING_RATE
from siman_jax.training.task import build_task

from .case import Finding, choose

_TINY = ["--config.model.name=cifar.vgg_small_1w1a", "--config.model.width=2"]
_TEXTS = [
    "",
    " ",
    "None",
    "a",
    "a,,b",
    "[]",
    "{}",
    "é",
    "\x1b[2J",
    "~",
    "'",
    "%s",
    "{0}",
    "x" * 3000,
]
_BY_TYPE = {
    bool: ["True", "False", "true", "0", "1"],
    int: [
        *("0", "-0", "1", "-1", "2", "3", "7", "16", "100", "255", "256", "1000", "1_0", "0x10"),
        *("2147483647", "2147483648", "4294967296", "9223372036854775808", "1" + "0" * 40, "1.0"),
    ],
    float: [
        *("0", "-0", "1", "-1", "0.5", "-0.5", "0.9", "0.99999999999", "1e-320", "1e-45", "1e-9"),
        *("49.9", "50", "100", "1e10", "1e38", "1e39", "1e308", "1e400", "nan", "-inf", "inf"),
    ],
    str: [
        "float16",
        "bfloat16",
        "float64",
        "float32",
        "digits",
        "tfds",
        "image_folder",
        "rbnn",
        "same",
    ],
    tuple: [
        *("0.5", "0", "-1", "nan", "inf", "1e39", "1e-30", "1e-46", "0.5,0.5", "1,2,3", "(0.5,)"),
        *("binary_kernel,alpha", "binary_kernel", "alpha,alpha", "kernel,", "binary_kernel;alpha"),
    ],
}


class Configs:
    seconds = 1200
    lifetime = 300

    def __init__(self, scratch: Path) -> None:
        self._mesh = make_mesh(1)

    def make(self, rng: np.random.Generator) -> bytes:
        arguments = []
        for _ in range(int(rng.integers(1, 4))):
            field, default = choose(rng, list(fields().items()))
            texts = _names(field) or _BY_TYPE[type(default)]
            if rng.random() < 0.1:
                texts = _TEXTS
            if rng.random() < 0.03:
                field += choose(rng, [".a", "x", "."])
            arguments.append(f"--config.{field}={choose(rng, texts)}")
        return json.dumps(arguments).encode()

    def check(self, case: bytes) -> Mapping[str, int]:
        arguments = ["--config=configs/digits.py", *_TINY, *json.loads(case)]
        line = ["main", *arguments]
        with (
            flagsaver.flagsaver(),
            contextlib.chdir(Path(__file__).parent.parent.parent),
            mock.patch.object(sys, "argv", line),  # where fields of a config are found
        ):
            flags.FLAGS.set_gnu_getopt(True)
            try:
                parse_flags(line)
                config = lock_config(main._CONFIG.value)
                task = build_task(config, self._mesh)
            except UsageError as error:
                if not str(error) or len(str(error)) > 20_000:
                    raise Finding(f"a message of {len(str(error))} characters") from error
                return {"refused": 1}
            # What is accepted can be trained, as far as shapes and dtypes tell.
            layout = abstract_snapshot(
                config, creation(config, task.model, task.optimizer), self._mesh
            )
            size, channels = config.data.image_size, config.data.channels
            jax.eval_shape(
                task.step,
                layout.progress.state,
                jax.ShapeDtypeStruct((config.batch_size, size, size, channels), jnp.float32),
                jax.ShapeDtypeStruct((config.batch_size,), jnp.int32),
            )
            for step_number in (0, config.epochs * task.steps_per_epoch - 1):
                rate = float(
                    task.schedules[LEARNING_RATE](jnp.asarray(min(step_number, 2**31 - 1)))
                )
                if not (rate >= 0 and np.isfinite(rate)):
                    raise Finding(f"{arguments}: the learning rate is {rate}")
        return {"accepted": 1}


@cache
def fields() -> dict[str, object]:
    """Values of all fields, by names such as "model.width"."""
    return dict(sorted(flat(digits.get_config().to_dict()).items()))


def _names(field: str) -> list[str]:
    tables = {
        "model.name": NETWORKS,
        "model.weight_rule": WEIGHT_RULES,
        "model.activation_rule": ACTIVATION_RULES,
    }
    return list(tables.get(field, []))
