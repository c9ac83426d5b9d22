"""A sweep of two variants and two seeds, each some steps long."""

from siman_jax.configs import digits
from siman_jax.runs.sweep_plan import Sweep


def get_sweep() -> Sweep:
    """The grid."""
    config = digits.get_config()
    config.model.name = "cifar.tiny_1w1a"  # of commands.py
    config.model.width = 4
    config.epochs = 2
    config.native = False
    config.batch_size = 32
    config.eval_batch_size = 60
    config.keep_checkpoints = 1
    config.data.train_examples = 64
    variants = {rule: {"model.weight_rule": rule} for rule in ("half_half", "bnn")}
    return Sweep("tiny", config, variants, seeds=(0, 1))
