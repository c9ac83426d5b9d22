"""Small runs for tests, and the arrays that they store."""

import jax
import numpy as np

from siman_jax.configs import digits

EPOCHS = 3


def small_config():
    """Three epochs of a narrow network on the digits."""
    config = digits.get_config()
    config.epochs = EPOCHS
    config.model.width = 4
    config.batch_size = 256
    config.eval_batch_size = 100  # 360 examples: the last batch is ragged
    config.data.crop_padding = 1
    config.data.flip = True
    return config


def leaves_of(workdir, step):
    """All arrays of a checkpoint, by path."""
    from orbax.checkpoint import v1 as ocp

    tree = ocp.load(workdir / "checkpoints" / str(step))
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
