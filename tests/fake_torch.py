"""A module in the place of PyTorch, for tests of what reads its files."""

import contextlib
import importlib.machinery
import sys
import types


def install(monkeypatch, load):
    """Put a module `torch` in place whose `load` is `load(file)`; tensors are NumPy arrays."""
    torch = types.ModuleType("torch")
    torch.__spec__ = importlib.machinery.ModuleSpec("torch", None)
    torch.load = lambda file, **_: load(file)
    torch.serialization = types.SimpleNamespace(
        safe_globals=lambda _: contextlib.nullcontext(),
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
