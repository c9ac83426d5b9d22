"""A file that gives no config."""


def get_config():
    return 3
