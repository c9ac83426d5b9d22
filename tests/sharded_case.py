"""Five float64 steps of a small binary ResNet, for any number of devices and processes.

Tests and the processes that they start import this.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from siman_jax.configs import cifar10
from siman_jax.devices.mesh import by_example, replicated
from siman_jax.models.initializers import kaiming_normal
from siman_jax.models.layers import BinaryConv
from siman_jax.models.norm_layer import BatchNorm
from siman_jax.models.resnet import ResNet, TwoShortcutBlock, pad_shortcut
from siman_jax.native.dispatch import native
from siman_jax.training.optimizer import build_optimizer
from siman_jax.training.step import create_state, train_step

STEPS = 5
GLOBAL_BATCH = 32
IMAGE = (8, 8, 3)


@dataclass(frozen=True)
class Case:
    dtype: Any
    model: nn.Module
    optimizer: optax.GradientTransformation


def make_case(dtype=jnp.float64, norm_groups=1):
    config = cifar10.get_config()
    model = ResNet(
        8,
        width=8,
        stages=(1, 1),
        block=TwoShortcutBlock,
        shortcut=pad_shortcut,
        conv=partial(BinaryConv, dtype=dtype),
        norm=partial(BatchNorm, dtype=dtype, groups=norm_groups),
        stem_activation=nn.relu,
        imagenet_stem=False,
        real_init=kaiming_normal,
        classifier_init=kaiming_normal,
        dtype=dtype,
    )
    return Case(dtype, model, build_optimizer(config.optimizer, 0.05))


def fresh_state(case, mesh):
    def create(key):
        state = create_state(case.model, case.optimizer, key, image_shape=IMAGE)
        return jax.tree.map(
            lambda x: x.astype(case.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, state
        )

    options = {"xla_backend_optimization_level": 0}  # compiles ten times faster
    return jax.jit(create, out_shardings=replicated(mesh), compiler_options=options)(
        jax.random.key(0)
    )


def make_step(case, state, mesh):
    step = partial(
        train_step,
        model=case.model,
        optimizer=case.optimizer,
        schedules={"clip_percent": lambda _: 10.0},
        replicate=lambda tree: jax.lax.with_sharding_constraint(tree, replicated(mesh)),
    )
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)

    def step_by_xla(*arguments):  # as in training on several devices
        with native(False):
            return step(*arguments)

    return jax.jit(
        step_by_xla,
        in_shardings=(shardings, by_example(mesh), by_example(mesh)),
        out_shardings=(shardings, replicated(mesh)),
    )


def rows(step, process, processes, dtype=np.float64):
    """Return this process's rows of batch number `step`: images and labels."""
    rng = np.random.default_rng(step)
    images = rng.standard_normal((GLOBAL_BATCH, *IMAGE)).astype(dtype)
    labels = rng.integers(0, 8, GLOBAL_BATCH).astype(np.int32)
    share = GLOBAL_BATCH // processes
    own = slice(process * share, (process + 1) * share)
    return images[own], labels[own]
