"""The configs that the package ships: one file a data set, every hyperparameter in it.

`siman_jax.configs` is this folder, so a config of one's own can build on these from anywhere:

    from siman_jax.configs import cifar10
"""
