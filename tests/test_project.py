"""The whole project: imports in one direction, and configs that all build."""

import ast
import importlib
import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from siman_jax.training.optimizer import build_optimizer
from siman_jax.training.step import create_state, train_step
from siman_jax.training.task import model_from_config

REPOSITORY = Path(__file__).parent.parent
PACKAGE = REPOSITORY / "siman_jax"

CONFIGS = [
    ("cifar10", ()),
    ("cifar10", ("resnet20",)),
    ("cifar10", ("resnet18",)),
    ("cifar10", ("vgg_small",)),
    ("cifar100", ()),
    ("cifar100", ("vgg_small",)),
    ("cifar10_short", ()),
    ("cifar10_strong", ()),
    ("cifar10_strong", ("real_weights",)),
    ("cifar10_strong", ("teacher",)),
    ("digits", ()),
    ("image_folder", ()),
    ("image_folder", ("resnet18",)),
    ("imagenet", ()),
    ("imagenet", ("resnet34",)),
    ("imagenet_two_step", ()),
    ("imagenet_two_step", ("real_weights",)),
    ("imagenet_two_step", ("teacher",)),
]


# The rooms of the package, which are folders and single files, with the rooms that each imports.
ROOMS = {
    "errors": "",
    "cores": "",
    "outside": "errors",
    "stop": "",
    "streams": "stop",
    "output": "errors",
    "paths": "errors",
    "terminal": "",
    "shipped": "errors terminal",
    "field_names": "errors",
    "config_flag": "errors paths field_names shipped",
    "native": "cores",
    "rules": "errors native",
    "models": "errors outside terminal native rules",
    "program": "errors native rules models",
    "trained": "errors",
    "packed": "cores errors output paths native rules models program trained",
    "pytorch": "errors paths models",
    "devices": "errors stop",
    "data": "cores errors outside output paths devices",
    "training": "errors field_names outside native rules models program devices data",
    "analysis": "rules models data training",
    "runs": "errors field_names outside stop output paths terminal native models packed pytorch"
    " devices data training analysis",
    "configs": "errors data runs",
    "siman_jax": "errors paths models rules trained packed devices data runs",
    "command": "config_flag errors outside stop terminal native",
    "report": "errors output paths terminal devices data training analysis runs command",
    "main": "errors stop streams paths terminal models devices data training runs command",
    "sweep": "errors stop streams output paths terminal shipped devices data training runs command",
    "export": "errors output paths terminal models program packed devices data training"
    " runs command",
    "convert": "errors output paths terminal models program packed pytorch devices data training"
    " runs configs command",
    "predict": "cores errors paths terminal trained packed data command",
}


def room(module):
    return module.split(".")[1] if "." in module else module


def imports(package=PACKAGE):
    """Return the modules of a package, and the modules in it that each imports."""
    graph = {}
    # siman_jax/configs is a link to a folder, which rglob does not enter.
    for path in (*package.rglob("*.py"), *(package / "configs").rglob("*.py")):
        name = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
        name = name.removesuffix(".__init__")
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        graph[name] = found
    # Importing a module from a package does not count as an import of the package's own file.
    return {
        name: {
            other
            for other in found
            if other in graph and not any(o.startswith(f"{other}.") and o in graph for o in found)
        }
        for name, found in graph.items()
    }


def reachable(graph, start):
    seen, todo = set(), [start]
    while todo:
        for other in graph[todo.pop()] - seen:
            seen.add(other)
            todo.append(other)
    return seen


def test_imports_run_one_way():
    graph = imports()
    for name in graph:
        assert name not in reachable(graph, name), f"{name} imports itself in a circle"
    importers = {name: {n for n, others in graph.items() if name in others} for name in graph}
    assert not importers["siman_jax.main"]
    assert not importers["siman_jax.sweep"]
    assert importers["siman_jax.runs.train"] == {
        "siman_jax",
        "siman_jax.main",
        "siman_jax.sweep",
        "siman_jax.runs.steps",
    }
    assert importers["siman_jax.runs.checkpoint"] == {
        "siman_jax.runs.record",
        "siman_jax.runs.train",
        "siman_jax.runs.stored_run",
        "siman_jax.runs.verify",
    }


def test_benchmarks_import_one_way():
    """There are no circles of files, and no two folders import each other."""
    graph = imports(REPOSITORY / "benchmarks")
    for name in graph:
        assert name not in reachable(graph, name), f"{name} imports itself in a circle"
    folders = {}
    for name, others in graph.items():
        folder = name.rpartition(".")[0]
        folders.setdefault(folder, set()).update(other.rpartition(".")[0] for other in others)
    for folder, others in folders.items():
        assert not any(folder in folders[other] for other in others - {folder}), folder
    for path in PACKAGE.rglob("*.py"):
        assert "benchmarks" not in re.findall(r"(?m)^\s*(?:from|import) (\w+)", path.read_text())


def test_a_room_imports_only_rooms_before_it():
    found = {}
    for name, others in imports().items():
        found.setdefault(room(name), set()).update(map(room, others))
    assert {name: others - {name} for name, others in found.items()} == {
        name: set(others.split()) for name, others in ROOMS.items()
    }
    order = list(ROOMS)
    for name, others in ROOMS.items():
        assert set(others.split()) <= set(order[: order.index(name)]), name


NATIVE = {"native", "cores"}
RULES = NATIVE | {"rules", "errors"}
PACKED = RULES | {"packed", "models", "program", "trained"}


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("siman_jax.native.library", NATIVE),
        ("siman_jax.rules.siman", RULES),
        ("siman_jax.rules", RULES),
        ("siman_jax.models.batch_norm", RULES),
        ("siman_jax.models.layers", RULES | {"models"}),
        ("siman_jax.models", RULES | {"models"}),
        ("siman_jax.program.kernels", NATIVE | {"program"}),
        ("siman_jax.packed.program_file", PACKED | {"output", "paths"}),
        ("siman_jax.packed.model", PACKED | {"output", "paths", "terminal"}),
        ("siman_jax.training.optimizer", RULES | {"models", "training"}),
    ],
)
def test_the_core_knows_nothing_of_training(name, allowed):
    parts = {other.split(".")[1] for other in reachable(imports(), name) if "." in other}
    assert parts <= allowed


def test_only_one_file_knows_orbax():
    lines = {path: path.read_text().splitlines() for path in PACKAGE.rglob("*.py")}
    users = [p for p, text in lines.items() if any("import" in x and "orbax" in x for x in text)]
    assert users == [PACKAGE / "runs" / "checkpoint.py"]


def test_only_one_file_knows_torch():
    files = {path: path.read_text().splitlines() for path in PACKAGE.rglob("*.py")}
    users = [path for path, lines in files.items() if "import torch" in map(str.strip, lines)]
    assert users == [PACKAGE / "pytorch" / "checkpoint.py"]


def test_the_core_needs_no_data_library():
    """It runs where they are not installed; tensorboardX imports PyTorch where that is."""
    code = (
        "import sys;"
        "sys.modules |= dict.fromkeys(('tensorflow', 'tensorflow_datasets', 'sklearn', 'grain',"
        " 'cv2', 'simplejpeg', 'torch', 'matplotlib'));"  # None: importing it fails
        "import siman_jax.runs.train, siman_jax.convert, siman_jax.models.summary"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


@pytest.mark.parametrize(("name", "arguments"), CONFIGS)
def test_every_config_builds(name, arguments):
    config = importlib.import_module(f"siman_jax.configs.{name}").get_config(*arguments)
    config.data.num_classes = config.data.num_classes or 10
    config.lock()
    if arguments != ("real_weights",):
        assert json.loads(config.to_json())["optimizer"]["undecayed"] == ["binary_kernel", "alpha"]
    model = model_from_config(config)
    optimizer = build_optimizer(config.optimizer, 0.1)
    shape = (config.data.image_size, config.data.image_size, config.data.channels)
    state = jax.eval_shape(
        partial(create_state, model, optimizer, image_shape=shape), jax.random.key(0)
    )
    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    labels = jax.ShapeDtypeStruct((2,), jnp.int32)
    logits = jax.eval_shape(partial(model.apply, train=False), state.variables(), images)
    assert logits.shape == (2, config.data.num_classes)
    step = partial(
        train_step, model=model, optimizer=optimizer, schedules={"clip_percent": lambda _: 5.0}
    )
    after, _ = jax.eval_shape(step, state, images, labels)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )


def test_every_config_file_is_tested():
    files = {path.stem for path in (REPOSITORY / "configs").glob("*.py")} - {"__init__"}
    assert files == {name for name, _ in CONFIGS}
