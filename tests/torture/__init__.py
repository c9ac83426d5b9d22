"""Kills, damage, full disks and hostile input, tried on the product in large numbers.

    python -m tests.torture --minutes=10 --seed=1 [--only=model_files,kills] [--json=FILE]

Each kind of attempt is a module with one class, see `case.Kind`. A case follows from its kind, the
seed and its number alone, and is a few bytes; one that finds a fault is stored as a file, which
becomes a test once the fault is mended (`findings/`, tests/test_torture.py).
"""
