"""The shipped configs: one file for each data set, with every hyperparameter.

`siman_jax.configs` is this folder, so your own config can build on these from anywhere:

    from siman_jax.configs import cifar10
"""
